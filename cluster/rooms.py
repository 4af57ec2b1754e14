"""Start-up check that the rooms which Python finds are Penstock's own.

The rooms are literal top-level packages with generic names (docs/adr/0001). Another distribution can bring a package
of the same name: it then hides ours (it comes earlier on the path) or overwrites it (same directory, installed later).
Both end in import errors that nobody can read, so that start-up looks first and names the intruder.

This module imports the standard library only, and nothing from its own room: when `cluster` itself is hidden, it can
still be loaded by its path.
"""

import base64
import hashlib
import importlib.util
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "penstock"
ROOMS: Final = ("penstock", "actors", "cluster", "admission", "telemetry")

# Ray unpacks every uploaded package of a `runtime_env` into a directory of its own with this prefix.
_RAY_PACKAGE_PREFIX: Final = "_ray_pkg_"


@dataclass(frozen=True)
class RoomIntruder:
    """A room that is not ours: what Python finds under the name ``room``.

    ``file`` is the found package's ``__init__.py`` (or directory), None where nothing is found. ``distributions``
    are the installed distributions that brought it, empty for a plain directory. ``overwritten`` says that the file
    lies where ours was installed, with other contents.
    """

    room: str
    file: Path | None
    distributions: tuple[str, ...] = ()
    overwritten: bool = False

    def __str__(self) -> str:
        """What is wrong and what to do about it, in one line."""
        if self.file is None:
            return f"room '{self.room}' is missing; {_reinstall()}"
        origin = f"distribution {', '.join(self.distributions)}" if self.distributions else "no installed distribution"
        verb = "was overwritten" if self.overwritten else "is hidden"
        what = f"room '{self.room}' {verb} by {self.file} (from {origin})"
        if self.distributions:
            return f"{what}; uninstall {' and '.join(self.distributions)} from this environment, then {_reinstall()}"
        if self.overwritten:
            return f"{what}; {_reinstall()}"
        place = self.file.parent.parent
        return f"{what}; rename or delete that package, or start Penstock without {place} on the Python path"


class ForeignRoomError(ImportError):
    """Some rooms come from elsewhere; ``intruders`` tells which, and the message names each with its fix."""

    def __init__(self, intruders: list[RoomIntruder]) -> None:
        self.intruders = intruders
        lines = "\n".join(f"  - {intruder}" for intruder in intruders)
        super().__init__(
            f"Penstock's packages are mixed with others of the same name:\n{lines}", name=intruders[0].room
        )


def check_rooms() -> list[RoomIntruder]:
    """The rooms that do not come from where this file is; empty when all is well.

    Imports no room. Costs about a millisecond when all is well; only an intruder makes it read the metadata of
    everything that is installed.
    """
    home = Path(__file__).resolve().parent.parent
    suspects: list[RoomIntruder] = []
    for room in ROOMS:
        file = _found_file(room)
        if file is None:
            suspects.append(RoomIntruder(room, None))
        elif not _same_place(home, file.parent.parent):
            suspects.append(RoomIntruder(room, file))
        elif _is_overwritten(room, file):
            suspects.append(RoomIntruder(room, file, overwritten=True))
    return [_with_distributions(suspect) for suspect in suspects]


def require_rooms() -> None:
    """Raise :class:`ForeignRoomError` unless all rooms are ours."""
    intruders = check_rooms()
    if intruders:
        raise ForeignRoomError(intruders)


def _reinstall() -> str:
    return f"install Penstock again: pip install --force-reinstall --no-deps {DISTRIBUTION}"


def _found_file(room: str) -> Path | None:
    """The file that an import of ``room`` runs; for a directory without one, the name that it would have."""
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(room)
    except ValueError:  # a module in sys.modules without a spec: someone put it there by hand
        return None
    if spec is None:
        return None
    if spec.origin is not None and spec.has_location:
        return Path(spec.origin).resolve()
    locations = list(spec.submodule_search_locations or ())
    return Path(locations[0]).resolve() / "__init__.py" if locations else None


def _same_place(home: Path, place: Path) -> bool:
    """Whether rooms in ``home`` and ``place`` came together: in one directory, or unpacked side by side by Ray."""
    if home == place:
        return True
    shipped = home.name.startswith(_RAY_PACKAGE_PREFIX) and place.name.startswith(_RAY_PACKAGE_PREFIX)
    return shipped and home.parent == place.parent


def _is_overwritten(room: str, file: Path) -> bool:
    """Whether ``file`` differs from what our distribution's record says; False where there is no record to compare.

    A source tree and an editable install have none: there nothing can be overwritten by an installer.
    """
    try:
        ours = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return False
    for entry in ours.files or ():
        if entry.as_posix() != f"{room}/__init__.py" or entry.hash is None:
            continue
        if Path(str(ours.locate_file(entry))).resolve() != file:
            return False
        try:
            digest = hashlib.new(entry.hash.mode, file.read_bytes()).digest()
        except OSError:
            return True
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != entry.hash.value
    return False


def _with_distributions(suspect: RoomIntruder) -> RoomIntruder:
    """The suspect together with the distributions, ours excepted, that installed its file."""
    if suspect.file is None:
        return suspect
    place = suspect.file.parent.parent
    names = {
        distribution.name
        for distribution in metadata.distributions()
        if distribution.name.lower() != DISTRIBUTION
        and Path(str(distribution.locate_file(""))).resolve() == place
        and _provides(distribution, suspect.room)
    }
    return replace(suspect, distributions=tuple(sorted(names)))


def _provides(distribution: metadata.Distribution, room: str) -> bool:
    if room in (distribution.read_text("top_level.txt") or "").split():
        return True
    return any(entry.parts[0] == room for entry in distribution.files or ())
