"""``penstock unknown`` and ``resolve``: effects whose outcome nobody can prove, and what people say of them."""

import contextlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from penstock.cli import shown
from penstock.cli.connection import ask, connected, in_loop, settings
from penstock.cli.outcome import Exit, Failure, guarded, say

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.unknown_views import Resolved, UnknownEffect
    from penstock.views import RunView

_SHOWN: Final = 3
_HOW: Final = "--applied, --not-applied or --ask-again, and --why TEXT"

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]


def add_to(cli: typer.Typer) -> None:
    """Adds the commands."""
    for command in (unknown, resolve):
        cli.command()(command)


@guarded
def unknown(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="All that is known of one run's.")] = None,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant only.", show_default=False)] = None,
    tool: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tool only.", show_default=False)] = None,
    batch: Annotated[str | None, typer.Option(metavar="KEY", help="Of this batch only.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List effects whose outcome nobody can prove, the longest unknown first: who is to settle them, and by when."""
    if run is not None:
        if tenant or tool or batch:
            raise Failure("name a run, or choose by --tenant, --tool and --batch: not both", Exit.BAD_INPUT)
        one = run
        found = ask(lambda client: client.unknown_of(one))
    else:
        found = ask(lambda client: client.unknown(tenant=tenant, tool=tool, batch=batch))
    if as_json:
        for each in found:
            shown.data(each)
    elif run is not None:
        for each in found:
            details(each)
    elif found:
        listing(found)
        say(f"settle one: penstock resolve RUN STEP with {_HOW}; all that is known of it: penstock unknown RUN")
    else:
        say("no effect is in doubt")


@guarded
def resolve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)],
    step: Annotated[str, typer.Argument(metavar="STEP", help="The step, see `penstock unknown`.", show_default=False)],
    applied: Annotated[bool, typer.Option("--applied", help="It happened: it is not done again.")] = False,
    not_applied: Annotated[bool, typer.Option("--not-applied", help="It did not happen: it is done again.")] = False,
    ask_again: Annotated[bool, typer.Option("--ask-again", help="A host asks the other side once more.")] = False,
    evidence: Annotated[
        str | None, typer.Option(metavar="JSON|TEXT", help="What proves it; kept with the receipt.", show_default=False)
    ] = None,
    result: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="With --applied: what the tool would have returned.", show_default=False),
    ] = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why, for everybody who looks.", show_default=False)] = "",
    by: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who says so; by default PENSTOCK_USER, or the user.", show_default=False),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="The run's state version when you looked; asked for where it matters.", show_default=False
        ),
    ] = None,
    app: Annotated[
        str | None, typer.Option("--app", metavar="MODULE", help="Module whose tools check the result.")
    ] = None,
    app_dir: Annotated[Path | None, typer.Option(help="Folder to import the app from.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Say what became of an effect that nobody could prove; it is recorded, and the run goes on from there."""
    if applied + not_applied + ask_again != 1:
        which = "none of them" if not (applied or not_applied or ask_again) else "more than one"
        raise Failure(f"say one of --applied, --not-applied and --ask-again; you gave {which}", Exit.BAD_INPUT)
    if ask_again and (evidence is not None or result is not None):
        raise Failure("--ask-again says nothing yet: give no --evidence and no --result with it", Exit.BAD_INPUT)
    if not_applied and result is not None:
        raise Failure("an effect that was not applied has no result: give no --result with it", Exit.BAD_INPUT)
    said: dict[str, Any] = {"by": by, "why": why, "version": version}
    if not ask_again:
        said |= {"applied": applied, "evidence": _json_or_text(evidence)}
    if result is not None:
        said["result"] = _json(result)

    def work(client: "Client") -> Coroutine[Any, Any, "Resolved"]:
        return client.ask_again(run, step, **said) if ask_again else client.resolve(run, step, **said)

    answer = _asked(work, app, app_dir, with_app=result is not None)
    if as_json:
        shown.data(answer)
        return
    words = {True: "applied", False: "not applied, it is done again", None: "a host asks once more"}
    say(
        f"run {run}, step {step} ({answer.tool}): {words[answer.applied]}; said by {answer.by}. "
        f"The run goes on: penstock show {run}"
    )


def listing(found: list["UnknownEffect"]) -> None:
    """A line for each effect."""
    made = shown.table("run", "step", "tool", "arguments", "tenant", "owner", "for", "to be settled", "what was tried")
    for each in found:
        shown.row(
            made, each.run_id, each.step, each.tool, _arguments(each, 60), each.tenant, each.owner,
            shown.length(each.for_s), settle_by(each), tried(each, 100),
        )  # fmt: skip
    shown.console().print(made)


def details(each: "UnknownEffect") -> None:
    """All that is known of one effect, and the commands that settle it."""
    facts: list[tuple[str, object]] = [
        ("run", f"{each.run_id} ({each.custom_id})"),
        ("agent", each.agent),
        ("batch, tenant", f"{each.batch or '(none)'}, {each.tenant}"),
        ("step", each.step),
        ("tool", f"{each.tool} ({each.risk})" if each.risk else each.tool),
        ("undoes", f"the effect of step {each.undoes}" if each.undoes else ""),
        ("arguments", _arguments(each, 2000)),
        ("idempotency key", each.idempotency_key),
        ("business key", each.business_key),
        ("owner", each.owner),
        ("intended", shown.moment(each.intended_ms)),
        ("unknown since", f"{shown.moment(each.since_ms)}, {shown.length(each.for_s)} ago"),
        ("to be settled", settle_by(each)),
        ("attempts", "not known: its host was lost" if each.tried.attempts is None else each.tried.attempts),
        ("last error", each.tried.last_error),
        ("reconcile", each.tried.reconciled),
        ("then", f"the run ends: {each.cancel_requested}" if each.cancel_requested else ""),
    ]
    made = shown.table("field", "value")
    for name, value in facts:
        if str(value):
            shown.row(made, name, value)
    shown.console().print(made)
    say(f"it happened:     {each.command} --applied --result JSON --evidence JSON|TEXT --why TEXT")
    say(f"it did not:      {each.command} --not-applied --why TEXT")
    say(f"ask once more:   {each.command} --ask-again")


def point_to(found: list["UnknownEffect"], count: int, more: str) -> None:
    """Says how some effects of ``count`` unknown runs are settled; ``more`` is the command that tells more of them."""
    counted = "1 run waits" if count == 1 else f"{count:,} runs wait"
    say(f"{counted} for somebody's word on an effect ({more}); say it with {_HOW}:")
    for each in found[:_SHOWN]:
        say(f"  {each.command}    ({each.tool}, for {shown.length(each.for_s)}, {each.owner})")
    if max(count, len(found)) > _SHOWN:
        say("  …")


def point_to_unknown(by_state: dict[str, int], batch: str | None = None) -> None:
    """The same for a batch, or the deployment, with these counts, if it has any."""
    count = by_state.get("confirmation_unknown", 0)
    if count:
        chosen = f" --batch {batch}" if batch else ""
        found = ask(lambda client: client.unknown(batch=batch, limit=_SHOWN))
        point_to(found, count, f"penstock unknown{chosen}")


def point_to_run(view: "RunView") -> None:
    """The same for one run, if it is unknown."""
    from penstock.errors import NotUnknown

    if view.state == "confirmation_unknown":
        with contextlib.suppress(NotUnknown):  # it has gone on meanwhile
            point_to(ask(lambda client: client.unknown_of(view.run_id)), 1, f"penstock unknown {view.run_id}")


def settle_by(each: "UnknownEffect") -> str:
    """Until when somebody should have settled it."""
    if each.settle_by_ms is None:
        return ""
    left_s = (each.settle_by_ms - each.now_ms) / 1000
    return f"overdue by {shown.length(-left_s)}" if each.overdue else f"within {shown.length(left_s)}"


def tried(each: "UnknownEffect", limit: int) -> str:
    """What was tried, in a line."""
    times = "" if each.tried.attempts is None else f"called {each.tried.attempts} times: "
    times = times.replace("1 times", "once") if each.tried.attempts == 1 else times
    text = f"{times}{each.tried.last_error}" + (f"; reconcile {each.tried.reconciled}" if each.tried.reconciled else "")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _arguments(each: "UnknownEffect", limit: int) -> str:
    given = each.arguments
    if isinstance(given, list):
        text = ", ".join(json.dumps(value, ensure_ascii=False) for value in given)
        return text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "" if given is None else shown.short(given, limit)


def _asked(
    work: Callable[["Client"], Coroutine[Any, Any, "Resolved"]],
    app: str | None,
    app_dir: Path | None,
    *,
    with_app: bool,
) -> "Resolved":
    """Asks the deployment; with the app's tools at hand where a result is to be checked."""
    from penstock.cli.submitting import app_at_hand

    found = settings()
    known = app_at_hand(found, app, app_dir, "the host checks the result") if with_app or app is not None else None

    async def go() -> "Resolved":
        async with connected(found, known) as client:
            return await work(client)

    return in_loop(go())


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(
            f"--result {text[:60]!r} is no JSON ({error}): a text is written as --result '\"text\"'", Exit.BAD_INPUT
        ) from None


def _json_or_text(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
