"""``penstock trail``: a run's audit trail, and whether it is whole."""

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import shown
from penstock.cli.connection import ask
from penstock.cli.outcome import Exit, Failure, guarded, plain, say

if TYPE_CHECKING:
    from penstock.trail_views import Trail, TrailVerification

_HEX_DIGITS = 32


@guarded
def trail(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove that nothing of it was changed, added or removed (exit code 1).")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="With --verify: what --head has printed before.", show_default=False),
    ] = None,
    head: Annotated[
        bool, typer.Option("--head", help="Print only what to keep elsewhere, for --verify --against.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Its child runs too, and theirs, in the order of time.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")] = False,
) -> None:
    """Show a run's audit trail: who asked, what was decided, approved, done and resolved, and what proves it."""
    kept = (against or "").strip().lower()
    if against is not None and (len(kept) != _HEX_DIGITS or set(kept) - set("0123456789abcdef")):
        raise Failure(
            f"--against {against!r}: give the {_HEX_DIGITS} hex digits that --head has printed", Exit.BAD_INPUT
        )
    if head:
        _head(run, as_json=as_json)
        return
    found = ask(lambda client: client.trail(run, deep=deep, verify=verify or bool(kept), kept=kept))
    shown.data(found) if as_json else _table(found)
    if found.verification is not None:
        _judged(found.verification, as_json=as_json)


def _head(run: str, *, as_json: bool) -> None:
    found = ask(lambda client: client.verify_trail(run))
    if not found.holds:
        _judged(found, as_json=True)
    if as_json:
        shown.data({"run_id": run, "head": found.anchor})
    else:
        typer.echo(found.anchor)


def _table(found: "Trail") -> None:
    from penstock.trail_rows import moment

    out = shown.console()
    out.print(plain(f"trail of run {found.run_id} ({found.custom_id}), agent {found.agent}: {found.state}"))
    several = len({row.run_id for row in found.rows}) > 1
    made = shown.table("time", *(["run"] if several else []), "step", "what", "by whom", "detail", "link")
    for row in found.rows:
        at = moment(row.at_ms) if row.at_ms else ""
        shown.row(made, at, *([row.run_id] if several else []), row.step, row.what, row.by, row.detail, row.link)
    out.print(made)


def _judged(found: "TrailVerification", *, as_json: bool) -> None:
    """Says what is proved.

    Raises:
        typer.Exit: something is broken.
    """
    if not as_json:
        _told(found, "")
    first = found.first
    if first is None:
        return
    run_id, finding = first
    where = f"entry {finding.place} ({finding.step}): " if finding.place is not None else ""
    say(
        f"error: the trail of run {run_id} is broken, first at: {where}{finding.what.replace('_', ' ')}: {finding.text}"
    )
    raise typer.Exit(Exit.FAILED)


def _told(found: "TrailVerification", indent: str) -> None:
    out = shown.console()
    places = f"{found.broken:,} {'place' if found.broken == 1 else 'places'}"
    verdict = f"is broken at {places}" if found.broken else "holds"
    ends = {"owner": ", its end sealed by its owner", "nobody": ", its end sealed by nobody"}.get(found.sealed_by, "")
    head = f", head {found.head[:8]}" if found.head else ""
    proved = f"{found.chained:,} of {found.entries:,} entries proved"
    out.print(f"{indent}run {found.run_id}: the chain {verdict}: {proved}{head}{ends}")
    for finding in found.findings:
        where = f"entry {finding.place} ({finding.step}): " if finding.place is not None else ""
        out.print(plain(f"{indent}  {where}{finding.what.replace('_', ' ')}: {finding.text}"))
    for note in found.notes:
        out.print(plain(f"{indent}  note: {note}"))
    for child in found.children:
        _told(child, indent + "  ")
