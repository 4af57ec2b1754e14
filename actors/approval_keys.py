"""The keys that this process signs and verifies approvals with, from its settings."""

from typing import Final

from pydantic import SecretStr

from admission.signature import Keyring

NO_KEYS: Final = Keyring({})


def keyring(keys: SecretStr | None) -> Keyring:
    """The keys of a deployment's settings (``approval_keys``).

    Raises:
        ValueError: they cannot be read; the text says what is wrong, and nothing of a key.
    """
    if keys is None:
        return NO_KEYS
    try:
        return Keyring.parse(keys.get_secret_value())
    except ValueError as error:
        raise ValueError(f"PENSTOCK_APPROVAL_KEYS: {error}") from None
