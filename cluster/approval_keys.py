"""The key that a deployment signs approvals with, where nobody has configured one: in its home, never in the store.

Whoever can write to the store must not be able to approve anything. So the key is beside the store's password, in a
file of the deployment's home (0600, the home itself 0700), and goes to hosts with their settings as the password does.
"""

import base64
import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

_KEY_BYTES: Final = 32


def approval_keys_file(home: Path) -> Path:
    """Where it is."""
    return home / "approval-keys"


def read_approval_keys(home: Path) -> str | None:
    """The keys that a deployment at ``home`` has made (``id:base64``, one a line), or None."""
    try:
        return approval_keys_file(home).read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, PermissionError):
        return None


def make_approval_keys(home: Path) -> str:
    """The keys of the deployment at ``home``; makes one where there is none. The home exists."""
    path = approval_keys_file(home)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    known = read_approval_keys(home)
    if known is not None:
        return known
    made = f"{secrets.token_hex(4)}:{base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(made + "\n")
        file.flush()
        os.fsync(fd)
    try:
        with contextlib.suppress(FileExistsError):
            # A link, and no move: of two that start at once, one key wins for both.
            os.link(temporary, path)
    finally:
        temporary.unlink()
    return read_approval_keys(home) or made
