"""How much memory a process has, and how much it can still get: of its machine, or of the group that bounds it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from actors.host_slots import Memory

_GROUPS: Final = Path("/proc/self/cgroup")
_MOUNT: Final = Path("/sys/fs/cgroup")
_UNBOUNDED: Final = 2**60


class MemoryProbe:
    """Looks at this process and at what bounds it. A look takes a fraction of a millisecond.

    Args:
        groups, mount: where the kernel tells of control groups; elsewhere there are none.
    """

    def __init__(self, groups: Path = _GROUPS, mount: Path = _MOUNT) -> None:
        self._process = psutil.Process()
        self._bounds = list(_bounds(groups, mount))

    def look(self) -> Memory:
        """The memory as it is now."""
        machine = psutil.virtual_memory()
        available, total = machine.available, machine.total
        for bound in self._bounds:
            limit, used = bound.read()
            if limit is not None and limit < total:
                total = limit
            if limit is not None:
                available = min(available, max(0, limit - used))
        return Memory(self._process.memory_info().rss, available, total)


class _Bound:
    """One control group that may bound this process' memory."""

    def __init__(self, folder: Path, limit: str, used: str, cache: str) -> None:
        self._folder = folder
        self._names = (limit, used)
        self._cache = cache

    def read(self) -> tuple[int | None, int]:
        """Its limit (None: it has none) and what is used of it, in bytes, without files that the kernel can drop."""
        try:
            limit_text, used_text = ((self._folder / name).read_text().strip() for name in self._names)
            limit = None if limit_text == "max" else int(limit_text)
            if limit is None or limit >= _UNBOUNDED:
                return None, 0
            return limit, max(0, int(used_text) - self._droppable())
        except (OSError, ValueError):
            return None, 0

    def _droppable(self) -> int:
        for line in (self._folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == self._cache:
                return int(value)
        return 0


def _bounds(groups: Path, mount: Path) -> Iterator[_Bound]:
    """This process' groups and those above them, of both versions of the kernel's interface.

    Inside a container the files of its own group are at the mount, whatever its path outside is called.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            top, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif controllers == "":
            top, names = mount, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            if (top / folder / names[0]).exists():
                yield _Bound(top / folder, *names)
