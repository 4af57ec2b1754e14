"""``penstock approvals``, ``approve`` and ``deny``: what people are asked, and what they say."""

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import shown
from penstock.cli.connection import ask, connected, in_loop, settings
from penstock.cli.outcome import Exit, Failure, guarded, plain, say

if TYPE_CHECKING:
    from penstock.approval_facts import ApprovalView
    from penstock.approval_views import ApprovalDetails

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]
IdArgument = Annotated[
    str, typer.Argument(metavar="APPROVAL", help="See `penstock approvals`.", show_default=False)
]  # fmt: skip
ByOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Who decides; by default you (PENSTOCK_USER).", show_default=False)
]
ActionOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIGEST", help="Only if it is still on this action, as the JSON of `approvals` says it.",
        show_default=False,
    ),
]  # fmt: skip


@guarded
def approvals(
    approval: Annotated[
        str | None, typer.Argument(metavar="[APPROVAL]", help="All that helps to decide on this one.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Tell of each as it is asked for, decided or over.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what waits for somebody's approval, the next one to expire first; or show all that is known of one."""
    if approval is not None:
        if watch or every:
            raise Failure("--watch and --all are for the list: give no approval with them", Exit.BAD_INPUT)
        known = approval
        details = ask(lambda client: client.approval(known))
        shown.data(details) if as_json else _details(details)
        return
    if watch:
        _watch(as_json=as_json)
        return
    found = ask(lambda client: client.approvals(all=every))
    if as_json:
        for each in found:
            shown.data(each)
    elif found:
        _listing(found)
    else:
        say("nothing waits for an approval")


@guarded
def approve(
    approval: IdArgument,
    by: ByOption = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for everybody who looks.")] = "",
    action: ActionOption = None,
    as_json: AsJson = False,
) -> None:
    """Approve one exact action. Its run goes on as soon as enough people have."""
    view = ask(lambda client: client.approve(approval, by=by, reason=reason, action=action))
    if as_json:
        shown.data(view)
    else:
        missing = view.needed - sum(each.approve for each in view.decisions)
        following = f"{missing} more needed" if view.state == "pending" else f"run {view.run_id} goes on"
        say(f"approved by {by or settings().user}: {call_text(view)}; {following}")


@guarded
def deny(
    approval: IdArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the agent is told.", show_default=False)],
    by: ByOption = None,
    action: ActionOption = None,
    as_json: AsJson = False,
) -> None:
    """Deny an action: it is not made, and the agent is told why."""
    view = ask(lambda client: client.deny(approval, reason=reason, by=by, action=action))
    if as_json:
        shown.data(view)
    else:
        say(f"denied by {by or settings().user}: {call_text(view)}; run {view.run_id} is told")


def _watch(*, as_json: bool) -> None:
    found = settings()

    async def work() -> None:
        async with connected(found) as client, aclosing(client.watch_approvals()) as views:
            async for view in views:
                shown.data(view) if as_json else typer.echo(plain(_line(view)))

    try:
        in_loop(work())
    except KeyboardInterrupt:
        say("stopped watching; what waits for an approval goes on waiting")
        raise typer.Exit(Exit.INTERRUPTED) from None


def call_text(view: "ApprovalView") -> str:
    """The call as people would write it."""
    if not isinstance(view.arguments, dict):
        return f"{view.tool}({shown.short(view.arguments, 200)})"
    unbound = {True: " (not bound)", False: ""}
    parts = (
        f"{name}={shown.short(value, 200)}{unbound[name in view.advisory]}" for name, value in view.arguments.items()
    )  # fmt: skip
    return f"{view.tool}({', '.join(parts)})"


def _line(view: "ApprovalView") -> str:
    """What has become of one, in a line."""
    by = f", {view.decisions[-1]}" if view.decisions else ""
    asked = f", asked by {view.submitter}" if view.submitter else ""
    until = f"; until {shown.moment(view.expires_ms)}, by {view.who_may}" if view.state == "pending" else ""
    problem = f"; DO NOT APPROVE: {view.problem}" if view.problem else ""
    return f"{view.id} {view.progress}{by}: {call_text(view)}, {view.risk}, run {view.run_id}{asked}{until}{problem}"


def _listing(found: "list[ApprovalView]") -> None:
    made = shown.table(
        "approval", "state", "call", "risk", "asked by", "run", "who may decide", "expires", right=("expires",)
    )  # fmt: skip
    for each in found:
        left = f"in {shown.length(each.left_s)}" if each.state == "pending" else ""
        who = each.who_may if each.state == "pending" else "; ".join(map(str, each.decisions))
        shown.row(
            made, each.id, each.progress, call_text(each), each.risk, each.submitter, each.run_id, who, left
        )  # fmt: skip
    shown.console().print(made)
    for each in found:
        if each.problem:
            say(f"{each.id}: do not approve it: {each.problem}")


def _details(details: "ApprovalDetails") -> None:
    """One of them: what is asked, of whom, what the run has done so far, and what was said of the tool before."""
    out, view = shown.console(), details.approval
    arguments: Any = view.arguments if isinstance(view.arguments, dict) else {}
    facts: list[tuple[str, object]] = [
        ("approval", view.id),
        ("state", view.progress),
        ("problem", view.problem and f"do not approve it: {view.problem}"),
        ("tool", view.tool),
        ("risk", view.risk),
        *((f"  {name}", f"{shown.short(value)}{' (not bound)' * (name in view.advisory)}")
          for name, value in arguments.items()),
        ("why asked", view.rule),
        ("asked by", view.submitter),
        ("tenant", view.tenant),
        ("asked", shown.moment(view.asked_ms)),
        ("expires", shown.moment(view.expires_ms)),
        ("who may decide", view.who_may),
        *(("decided", f"{each} ({shown.moment(each.at_ms)})") for each in view.decisions),
        ("run", f"{view.run_id} ({details.custom_id}), {details.run_state}, step {view.step}"),
        ("agent", f"{view.agent} version {view.agent_version}"),
        ("action", view.action),
    ]  # fmt: skip
    made = shown.table("field", "value")
    for name, value in facts:
        if str(value):
            shown.row(made, name, value)
    out.print(made)
    steps = [each for each in details.steps if each.kind != "approval"]
    if steps:
        out.print("the run so far:")
        shown.steps(out, steps)
    if details.before:
        out.print(f"what people said of {view.tool} before:")
        made = shown.table("when", "call", "asked by", "said")
        for each in details.before:
            words = "; ".join(map(str, each.decisions))
            shown.row(made, shown.moment(each.closed_ms), call_text(each), each.submitter, words)
        out.print(made)
