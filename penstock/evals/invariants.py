"""Invariants: what must be true of every run, whatever the model said. Plain functions of a run's journal."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from actors.errors import DefinitionError, described
from penstock.evals.journal import RunJournal

Check: TypeAlias = Callable[[RunJournal], str | bool | Iterable[str] | None]
"""None, True or nothing: it holds. A text, or several: what does not. False, or an exception: it does not hold."""

_LONGEST_TEXT: Final = 500


@dataclass(frozen=True)
class Invariant:
    """A declared invariant; ``function`` is the undecorated one."""

    function: Check
    name: str
    about: str = ""

    def __call__(self, run: RunJournal) -> Any:
        """What the function says."""
        return self.function(run)

    def violations(self, run: RunJournal) -> tuple[str, ...]:
        """What does not hold in a run; an exception is what its text says, since it was not shown to hold."""
        try:
            said = self.function(run)
            if said is None or said is True:
                return ()
            if said is False:
                return (self.about or "does not hold",)
            found = (said,) if isinstance(said, str) else tuple(str(each) for each in said)
        except Exception as error:
            name, text = described(error)
            found = (text if isinstance(error, AssertionError) and text else f"{name}: {text}",)
        return tuple(text[:_LONGEST_TEXT] for text in found if text)


def invariant(function: Check) -> Invariant:
    """Declares an invariant::

        @invariant
        def refund_within_order(run: RunJournal) -> str | None:
            \"\"\"No refund is more than its order's total.\"\"\"

    The function says nothing (or True) where it holds, and what is wrong where it does not; it may also raise. Name it
    in an evaluation's specification by its import path, as in ``my_package.checks:refund_within_order``.
    """
    about = (function.__doc__ or "").strip().partition("\n")[0]
    return Invariant(function, function.__name__, about)


@invariant
def one_effect_per_key(run: RunJournal) -> list[str]:
    """No effect happened twice: each idempotency key stands for one."""
    first: dict[str, str] = {}
    found = []
    for each in run.all_runs():
        for step in each.steps:
            if not step.happened:
                continue
            where = f"step {step.path} ({step.name})" + (f" of child {each.agent}" if each is not run else "")
            earlier = first.setdefault(step.idempotency_key, where)
            if earlier is not where:
                key = step.business_key or step.idempotency_key
                found.append(f"{where} and {earlier} both happened under key {key!r}")
    return found


@invariant
def no_write_without_grant(run: RunJournal) -> list[str]:
    """No effect without a permission that is on record: allowed, or approved by somebody."""
    found = []
    for step in run.effects():
        if not step.happened or step.undoes:
            continue
        decision = step.permission.get("decision", "")
        if not decision:
            found.append(f"step {step.path} ({step.name}): no permission is on record")
        elif decision not in ("allow", "approve"):
            found.append(f"step {step.path} ({step.name}): happened although the decision was {decision!r}")
        elif decision == "approve" and not step.approval:
            found.append(f"step {step.path} ({step.name}): needed an approval, and none is on record")
    return found


BUILT_IN: Final = {each.name: each for each in (one_effect_per_key, no_write_without_grant)}


def found_invariant(path: str) -> Invariant:
    """The invariant that a specification names: a built-in one, or ``module:name``.

    Raises:
        DefinitionError: there is none; the text says what to write.
    """
    if path in BUILT_IN:
        return BUILT_IN[path]
    module, colon, name = path.partition(":")
    if not colon:
        raise DefinitionError(
            f"{path!r} is no built-in invariant ({', '.join(sorted(BUILT_IN))}); name one of yours as module:name"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise DefinitionError(
            f"{path!r}: {module} cannot be imported ({error}): name its folder with --app-dir"
        ) from None
    except AttributeError:
        raise DefinitionError(f"{path!r}: module {module} has no {name!r}") from None
    if not isinstance(found, Invariant):
        raise DefinitionError(f"{path!r} is a {type(found).__name__}: put @invariant (from penstock) above it")
    return found
