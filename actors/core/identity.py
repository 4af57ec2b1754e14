"""Step paths: names for steps that do not depend on which one ends first. Pure.

Each asyncio task of a run has a scope of its own. Steps that a task asks for are numbered in its scope, and the tasks
that it starts get branches below it, numbered in the order in which it starts them. Both orders are those of the
agent's code: it does not matter which step or which task ends first.
"""

from cluster.keys import digest


class Scope:
    """Numbering of one task's steps. ``owner`` identifies the task, ``shell`` its run; both are only passed on."""

    __slots__ = ("_branches", "_prefix", "_steps", "owner", "shell")

    def __init__(self, owner: object, shell: object = None, prefix: str = "") -> None:
        self.owner = owner
        self.shell = shell
        self._prefix = prefix
        self._steps = 0
        self._branches = 0

    def next_step(self) -> str:
        """The path of the next step that this task asks for."""
        step = f"{self._prefix}{self._steps}"
        self._steps += 1
        return step

    def branch(self, owner: object) -> "Scope":
        """The scope of a task that is started inside this one."""
        scope = Scope(owner, self.shell, f"{self._prefix}b{self._branches}.")
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
