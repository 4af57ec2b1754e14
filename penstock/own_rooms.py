"""Checks, before anything else of Penstock is imported, that its rooms are its own (see cluster/rooms.py)."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).resolve().parent.parent / "cluster" / "rooms.py"


def check_own_rooms() -> None:
    """Refuses to go on with a package of somebody else's in the place of one of ours.

    The check is loaded by its path: when it is `cluster` that is hidden, no import would find it.

    Raises:
        ImportError: names the intruder, where it came from and the fix.
    """
    if not _PATH.is_file():
        # Rooms that Ray unpacked side by side have no common parent; there the plain import is all there is.
        from cluster.rooms import require_rooms

        require_rooms()
        return
    spec = importlib.util.spec_from_file_location("penstock_rooms_by_path", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    try:
        module.require_rooms()
    except ImportError as error:
        if Path(sys.argv[0]).name == "penstock":
            # The command: its user needs the message, and not how we came to it.
            sys.exit(f"penstock: {error}")
        raise


check_own_rooms()
