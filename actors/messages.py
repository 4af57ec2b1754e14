"""Messages between hosts and hubs as bytes (msgpack), so that neither side unpickles what the other sends."""

from typing import Final

import msgspec

from admission.exchange import Lease, Report

_ENCODER: Final = msgspec.msgpack.Encoder()
_REPORTS: Final = msgspec.msgpack.Decoder(Report)
_LEASES: Final = msgspec.msgpack.Decoder(Lease)
encode_message = _ENCODER.encode


def decode_report(raw: bytes) -> Report:
    """A host's report.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _REPORTS.decode(raw)


def decode_lease(raw: bytes) -> Lease:
    """A hub's lease.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _LEASES.decode(raw)
