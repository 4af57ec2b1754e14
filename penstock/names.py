"""Which texts may be names of batches, and which are names of runs."""

import re
from typing import Final

from penstock.errors import InvalidBatchKey

_RUN_ID: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{24}")
_BATCH_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/+=~-]{0,127}")


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id."""
    return _RUN_ID.fullmatch(text) is not None


def check_batch_key(batch: str) -> str:
    """The batch key, if it may be one.

    Raises:
        InvalidBatchKey: it may not. Colons would mix up the store's keys, and a run's id would be ambiguous.
    """
    if is_run_id(batch):
        raise InvalidBatchKey(batch, "it looks like a run's id; choose another one")
    if not _BATCH_KEY.fullmatch(batch):
        raise InvalidBatchKey(
            batch, "use 1 to 128 letters, digits and . _ @ / + = ~ -, beginning with a letter or a digit"
        )
    return batch
