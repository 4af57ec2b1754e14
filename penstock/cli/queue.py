"""``penstock queue``, ``pause`` and ``resume``: how deep the queue is, how long runs wait, what is shed; holding it."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import shown
from penstock.cli.connection import ask, connected, in_loop, settings
from penstock.cli.outcome import Exit, Failure, guarded, plain, say

if TYPE_CHECKING:
    from penstock.queue_views import QueueView

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Of this tenant only.")]
AgentOption = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Of this agent only.")]
ClassOption = Annotated[str | None, typer.Option("--class", metavar="CLASS", help="Of this class only.")]


@guarded
def queue(
    tenant: TenantOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the queue: depth, drain rate, predicted waits, what is refused or shed and why, what is paused."""
    from penstock.cli import queue_tables

    if not watch:
        view = ask(lambda client: client.queue(tenant))
        shown.data(view) if as_json else queue_tables.show(view)
        return
    found = settings()

    async def work() -> None:
        async with connected(found) as client:
            with queue_tables.Screen() as screen:
                async for view in client.watch_queue(tenant):
                    _frame(view) if as_json else screen.show(view)

    try:
        in_loop(work())
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


def _frame(view: "QueueView") -> None:
    shown.data(view)
    sys.stdout.flush()


@guarded
def pause(
    tenant: TenantOption = None,
    agent: AgentOption = None,
    value_class: ClassOption = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why, for everybody who looks.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Start nothing more: of the whole queue, or of one tenant, agent or class. Jobs are still accepted, and wait."""
    made = ask(lambda client: client.pause(tenant=tenant, agent=agent, value_class=value_class, why=why))
    if as_json:
        shown.data(made)
        return
    from penstock.queue_views import named

    say(f"{named(made.what)} is paused: nothing of it is started; what runs goes on, and jobs are still accepted")
    say(f"to go on: penstock resume{_options(made.what)}; see penstock queue")


@guarded
def resume(
    tenant: TenantOption = None, agent: AgentOption = None, value_class: ClassOption = None, as_json: AsJson = False
) -> None:
    """End a pause: runs are started again, in their order."""
    from penstock.queue_views import named

    async def work(client: Any) -> tuple[bool, list[Any]]:
        done = await client.resume(tenant=tenant, agent=agent, value_class=value_class)
        return done, await client.paused()

    done, still = ask(work)
    what = f"tenant:{tenant}" if tenant else f"agent:{agent}" if agent else f"class:{value_class}"
    what = what if tenant or agent or value_class else "queue"
    if as_json:
        shown.data({"what": what, "was_paused": done, "still_paused": still})
    elif done:
        say(f"{named(what)} goes on")
    for each in still:
        if not as_json:
            say(f"still paused: {plain(str(each))} (penstock resume{_options(each.what)})")
    if not done:
        raise Failure(f"{named(what)} was not paused: nothing was changed (penstock queue lists what is)")


def _options(what: str) -> str:
    """The options that name it."""
    kind, _, name = what.partition(":")
    return f" --{kind} {name}" if name else ""


def add_to(cli: typer.Typer) -> None:
    """Makes them commands."""
    for command in (queue, pause, resume):
        cli.command()(command)
