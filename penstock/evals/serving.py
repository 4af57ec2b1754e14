"""Which versions of agents an evaluation runs under, and whether their hosts can simulate them. Pure."""

from collections.abc import Sequence
from typing import NoReturn

from penstock.errors import UnusableSpec
from penstock.evals.spec import EvalSpec
from penstock.views import HostView


class EvalError(UnusableSpec):
    """An evaluation cannot be run as it was asked for; nothing was run."""


def pinned_versions(
    spec: EvalSpec, agents: Sequence[str], hosts: Sequence[HostView], against: str | None
) -> tuple[dict[str, str], dict[str, str] | None]:
    """The versions that the runs are pinned to, and those that they are compared with.

    Raises:
        EvalError: no host serves one of them, or one has tools with effects that cannot be simulated.
    """
    serving = [host for host in hosts if host.alive and not host.draining]
    ours = {agent: _chosen(agent, spec.version_of(agent), against, serving) for agent in agents}
    arms = [ours]
    if against is not None:
        # Of several agents, those that do not exist in that version are the same in both.
        other = {agent: against if against in _served(agent, serving) else ours[agent] for agent in agents}
        if against not in other.values():
            _refuse_against(against, ours)
        if other == ours:
            raise EvalError(
                f"--against {against} is the version that is evaluated ({named_versions(ours)}): name another one, "
                "or write version: into the specification"
            )
        arms.append(other)
    for arm in arms:
        _check_simulated(spec, arm, serving)
    return ours, arms[1] if len(arms) > 1 else None


def _chosen(agent: str, wanted: str | None, against: str | None, serving: Sequence[HostView]) -> str:
    served = _served(agent, serving)
    if wanted is not None:
        return _there(agent, wanted, served)
    left = [version for version in served if version != against] or served
    if not left:
        _there(agent, None, served)
    if len(left) > 1:
        raise EvalError(
            f"hosts serve {agent} in versions {', '.join(left)}: say which one is evaluated, as in `version: "
            f"{left[-1]!r}` in the specification"
        )
    return left[0]


def _refuse_against(against: str, ours: dict[str, str]) -> NoReturn:
    one = next(iter(sorted(ours)))
    raise EvalError(
        f"--against {against}: no living host serves that version; this deployment has {named_versions(ours)} only. "
        f"Start hosts that serve {one}@{against} in the same deployment beside those (same store and PENSTOCK_NAME, an "
        "app with that version), and evaluate again; `penstock hosts` lists who serves what"
    )


def _there(agent: str, version: str | None, served: list[str]) -> str:
    if version in served:
        return version
    wanted = "any version" if version is None else f"version {version}"
    there_are = f"versions served: {', '.join(served)}" if served else "there is no other version either"
    raise EvalError(
        f"{agent} in {wanted} is served by no living host; {there_are}. Start hosts that serve it "
        "(penstock up --app MODULE), or name another version; `penstock hosts` lists who serves what"
    )


def _check_simulated(spec: EvalSpec, versions: dict[str, str], serving: Sequence[HostView]) -> None:
    missing: set[str] = set()
    for host in serving:
        served = _agents_of(host)
        if any(served.get(agent) == version for agent, version in versions.items()):
            missing.update(tool for tool in _texts(host.info.get("not_simulated")) if not spec.allows(tool))
    if missing:
        names = ", ".join(sorted(missing))
        one = len(missing) == 1
        raise EvalError(
            f"{'tool' if one else 'tools'} {names} of {named_versions(versions)} {'changes' if one else 'change'} the "
            f"world and {'has' if one else 'have'} no simulate=: declare one, as in @tool(..., simulate=pretend), or, "
            f"where no job of this evaluation needs {'it' if one else 'them'}, write `allow_missing: [{names}]`"
        )


def _served(agent: str, serving: Sequence[HostView]) -> list[str]:
    return sorted({version for host in serving if (version := _agents_of(host).get(agent)) is not None})


def _agents_of(host: HostView) -> dict[str, str]:
    found = host.info.get("agents")
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def _texts(found: object) -> list[str]:
    return [str(each) for each in found] if isinstance(found, list) else []


def named_versions(versions: dict[str, str]) -> str:
    """Versions for people: ``refund-desk@2``."""
    return ", ".join(f"{agent}@{version}" for agent, version in sorted(versions.items()))
