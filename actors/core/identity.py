"""Step paths: names for steps that do not depend on which one ends first. Pure.

Each asyncio task of a run has a scope of its own. Steps that a task asks for are numbered in its scope; a task that
was started inside another one gets a branch below it, numbered by the order in which such tasks first ask. Tasks
start in the order in which they were made, so a replay numbers them alike.
"""

from cluster.keys import digest


class Scope:
    """Numbering of one task's steps. ``owner`` identifies the task; it is only compared."""

    __slots__ = ("_branches", "_prefix", "_steps", "owner")

    def __init__(self, owner: object, prefix: str = "") -> None:
        self.owner = owner
        self._prefix = prefix
        self._steps = 0
        self._branches = 0

    def next_step(self) -> str:
        """The path of the next step that this task asks for."""
        step = f"{self._prefix}{self._steps}"
        self._steps += 1
        return step

    def branch(self, owner: object) -> "Scope":
        """The scope of a task that was started inside this one."""
        scope = Scope(owner, f"{self._prefix}b{self._branches}.")
        self._branches += 1
        return scope


def idempotency_key(lineage_root: str, step: str, tool: str, arguments: bytes) -> str:
    """The key of a step's requests to the world outside: the same wherever and however often the step is made.

    Args:
        lineage_root: the id of the run that the step's run descends from, or of the run itself.
        step: the step's path.
        tool: the tool's name.
        arguments: digest of the canonical arguments.
    """
    return digest(lineage_root, step, tool, arguments)
