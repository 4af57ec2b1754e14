"""``penstock fork``, ``lineage`` and ``promote``: branches of a run, and which of them may cause effects."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import shown
from penstock.cli.connection import ask
from penstock.cli.outcome import Exit, Failure, guarded, plain, say

if TYPE_CHECKING:
    from rich.tree import Tree

    from penstock.lineage_views import LineageNode, LineageView

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]
By = Annotated[
    str | None, typer.Option(metavar="NAME", help="Who wants it; by default you (PENSTOCK_USER).", show_default=False)
]


_JSON_BEGINS = frozenset('{["')


def add_to(cli: typer.Typer) -> None:
    """Adds the commands."""
    for command in (fork, lineage, promote):
        cli.command()(command)


@guarded
def fork(
    run: RunArgument,
    at: Annotated[
        str,
        typer.Option(
            metavar="STEP", help="The step that is made anew (see `show`), or start, or now.", show_default=False
        ),
    ],
    input: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="Another input; - is the standard input.", show_default=False),
    ] = None,
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Another version of the agent.", show_default=False)
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key gives the same fork.", show_default=False)
    ] = None,
    by: By = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why, for everybody who looks.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Make a run that goes on from what RUN had recorded before a step; it causes no effects before it is promoted."""
    from actors.core.forking import NOW, START

    fields: dict[str, Any] = {} if input is None else {"input": json_input(input)}
    _check_texts(by, why)
    report = ask(lambda client: client.fork(run, at, version=version, key=key, by=by, why=why, **fields))
    if as_json:
        shown.data(report)
    else:
        typer.echo(report.run_id)
    entries = "1 entry" if report.inherited == 1 else f"{report.inherited:,} entries"
    word = "forked" if report.made else "was forked before"
    place = report.at if report.at in (START, NOW) else f"step {report.at}"
    say(f"run {run} {word} at {place}: run {report.run_id} has {entries} of its journal")
    if report.left_open:
        say(f"under way at that point, and left to the source: step {', '.join(report.left_open)}")
    if report.at_risk:
        say(
            "it has another input and a past: where its code does not ask for the recorded steps again, it ends as "
            "failed (replay_divergence)"
        )
    if not report.may_cause_effects:
        say(f"it causes no effects before: penstock promote {report.run_id} --why TEXT")


@guarded
def lineage(run: RunArgument, as_json: AsJson = False) -> None:
    """Show a run's whole family as a tree: forks, child runs, states, and which branch may cause effects."""
    view = ask(lambda client: client.lineage(run))
    if as_json:
        shown.data(view)
        return
    shown.console().print(tree(view))
    for note in view.promotions:
        took = f", from {' '.join(note.from_)}" if note.from_ else ""
        typer.echo(plain(f"promoted {shown.moment(note.at_ms)}: {note.run}{took}, by {note.by}: {note.why}"))
    if view.left_out:
        say(f"{view.left_out:,} child runs more are not shown")


@guarded
def promote(
    run: RunArgument,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept with the promotion.", show_default=False)],
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Give a branch the right to effects, and take it from all other branches of its lineage, in one step."""
    if not why.strip():
        raise Failure("--why must say something: it is kept with the promotion", Exit.BAD_INPUT)
    _check_texts(by, why)
    report = ask(lambda client: client.promote(run, why=why, by=by))
    if as_json:
        shown.data(report)
    if not report.changed:
        say(f"run {run} had the right to effects already")
        return
    took = f"; it was with {' '.join(report.from_)}, which may cause none any more" if report.from_ else ""
    say(f"run {run} may cause effects now{took}")


def json_input(text: str) -> Any:
    """What ``--input`` says: JSON, a file of it, or ``-``.

    Raises:
        Failure: it is none of these.
    """
    what = "--input"
    try:
        if text == "-":
            what, raw = "the standard input", sys.stdin.buffer.read()
        elif text.lstrip()[:1] not in _JSON_BEGINS and Path(text).is_file():
            what, raw = text, Path(text).read_bytes()
        else:
            raw = text.encode()
        return json.loads(raw, parse_constant=_refuse)
    except OSError as error:
        raise Failure(f"{what} cannot be read: {error.strerror or error}", Exit.BAD_INPUT) from None
    except (ValueError, RecursionError) as error:
        hint = "" if what != "--input" else "; give JSON, or the name of a file with it"
        raise Failure(f"{what} is not JSON: {error}{hint}", Exit.BAD_INPUT) from None


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON value")


def tree(view: "LineageView") -> "Tree":
    """A lineage as a tree."""
    from rich.text import Text
    from rich.tree import Tree

    def label(node: "LineageNode") -> Text:
        return Text.assemble(
            (plain(node.run_id), "bold" if node.run_id == view.run_id else ""),
            "  ",
            (node.state, shown.colour(node.state)),
            plain(_told(node)),
        )

    made = Tree(label(view.root))
    left = [(made, view.root)]
    while left:
        place, node = left.pop()
        left.extend((place.add(label(each)), each) for each in node.below)
    return made


def _told(node: "LineageNode") -> str:
    """What there is to say of a run beside its state."""
    from actors.core.forking import NOW, START
    from penstock.lineage_views import CHILD, FORGOTTEN, FORK

    if node.state == FORGOTTEN:
        return ": it is not kept any more"
    parts = [f"{node.agent} {node.agent_version}".strip()]
    if node.relation == FORK:
        parts.append(f"forked at {node.at}" if node.at in (START, NOW) else f"forked at step {node.at}")
    elif node.relation == CHILD:
        parts.append(f"child of step {node.at}")
    if node.reason and node.reason != node.state:
        parts.append(node.reason)
    parts.append(f"for {shown.age(node.since_ms)}")
    if node.simulated:
        parts.append("effects are simulated")
    else:
        parts.append("may cause effects" if node.may_cause_effects else "no effects")
    told = ", ".join(parts)
    why = f"{node.by}{f': {node.why}' if node.why else ''}" if node.relation == FORK else ""
    return f" {told}" + (f" ({why})" if why else "")


def _check_texts(by: str | None, why: str) -> None:
    for name, text, longest in (("--by", by or "", 256), ("--why", why, 2000)):
        if len(text) > longest:
            raise Failure(f"{name} has {len(text)} characters; give {longest} at most", Exit.BAD_INPUT)
