"""What a tool declares of its effect on the world: how to ask after it, undo it, pretend it, and who must allow it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from actors.core.outcome import Risk
from actors.errors import DefinitionError
from actors.schema import Signature

HOOKS: Final = ("reconcile", "compensate", "simulate", "verify")


@dataclass(frozen=True)
class EffectOptions:
    """A tool's declaration of its effect; :func:`actors.contract.tool` says what each of them means."""

    reconcile: Callable[..., Any] | None = None
    compensate: Callable[..., Any] | None = None
    simulate: Callable[..., Any] | None = None
    verify: Callable[..., Any] | None = None
    needs_approval: bool | Callable[..., bool] = False
    advisory: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    settle_within_s: float = 86_400.0
    lands_within_s: float = 30.0
    owner: str = ""
    replicas: int = 0


NO_EFFECT: Final = EffectOptions()


def check_effect_options(name: str, options: EffectOptions, risk: Risk, signature: Signature) -> None:
    """Refuses what cannot work.

    Raises:
        DefinitionError: the text names the tool, what is wrong, and the fix.
    """
    where = f"tool {name!r}"
    if not risk.is_effect:
        for which in ("reconcile", "compensate", "verify"):
            if getattr(options, which) is not None:
                raise DefinitionError(
                    f"{where} has {which}=, and its risk is {risk.name}: only effects (WRITE, IRREVERSIBLE) have one"
                )
    unknown = sorted(set(options.advisory) - set(signature.names))
    if unknown:
        raise DefinitionError(f"{where}: advisory={unknown} are none of its arguments {list(signature.names)}")
    if not all(scope and scope.isprintable() and " " not in scope for scope in options.scopes):
        raise DefinitionError(f"{where}: scopes={list(options.scopes)}; give printable words without spaces")
    for what, seconds in (("settle_within", options.settle_within_s), ("lands_within", options.lands_within_s)):
        if not 0 < seconds <= 366 * 86_400:
            raise DefinitionError(f"{where}: {what} is {seconds:g}; give seconds above zero, a year at most")
    if options.replicas < 0:
        raise DefinitionError(f"{where}: replicas is {options.replicas}; give zero or more")
