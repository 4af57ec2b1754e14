"""``penstock eval``: the same jobs again and again, with effects only simulated."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.outcome import Exit, Failure, guarded, say

if TYPE_CHECKING:
    from penstock.evals.running import Evaluation, StatusCallback


@guarded
def evaluation(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC.yaml", help="What to run; see docs/evals.md.", show_default=False)
    ],
    repeat: Annotated[
        int | None, typer.Option(min=1, help="Runs of each job; by default as the specification says, or 20.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Run another version beside it and compare.")
    ] = None,
    min_pass: Annotated[
        float | None, typer.Option(metavar="SHARE", min=0, max=1, help="Fail below this pass^k, from 0 to 1.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="The k of --min-pass; by default 1.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with pictures.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up after so long (exit code 4).")
    ] = None,
    app: Annotated[
        str | None, typer.Option("--app", metavar="MODULE", help="Module with the agents, to check inputs by.")
    ] = None,
    app_dir: Annotated[
        Path | None, typer.Option(help="Folder to import app and invariants from.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")] = False,
) -> None:
    """Run the same jobs again and again, effects only simulated; say how often they pass and where their paths part."""
    from penstock.cli import evaluation_tables, shown
    from penstock.cli.connection import connected, in_loop, settings
    from penstock.cli.submitting import app_at_hand
    from penstock.evals.running import evaluate
    from penstock.evals.spec import Changes, load_spec

    wanted = load_spec(spec, Changes(repeat=repeat, timeout_s=timeout, at_least=min_pass, k=k))
    if page is not None and not page.absolute().parent.is_dir():
        raise Failure(f"--page {page}: there is no folder {page.absolute().parent}", Exit.BAD_INPUT)
    found = settings()
    known = app_at_hand(found, app, app_dir)
    # Invariants are imported as the app is: from its folder, or from here.
    sys.path.insert(0, str((app_dir or Path.cwd()).absolute()))

    async def work() -> "Evaluation":
        async with connected(found, known) as client:
            with _progress() as on_status:
                return await evaluate(client, wanted, against=against, app=known, on_status=on_status)

    done = in_loop(work())
    if page is not None:
        from penstock.evals.page import page as made

        page.write_text(made(done), encoding="utf-8")
        say(f"page: {page}")
    shown.data(evaluation_tables.as_data(done)) if as_json else evaluation_tables.show(done)
    _end(done)


@contextlib.contextmanager
def _progress() -> "Iterator[StatusCallback]":
    from penstock.cli.watching import teller

    with teller() as tell:
        yield tell


def _end(found: "Evaluation") -> None:
    """Says the verdict, and ends the command with its exit code."""
    count = len(found.ours.violations)
    threshold = found.spec.threshold
    if found.holds:
        say("all invariants hold")
    else:
        say(f"{count} violations of invariants in {found.ours.runs} runs")
    if threshold is None:
        say(f"{found.ours.passed} of {found.ours.runs} runs passed; no threshold was set (--min-pass)")
    else:
        word = "at least" if found.passes_threshold else "below"
        say(f"pass^{threshold.k} is {found.pass_hat:.1%}, {word} the wanted {threshold.at_least:.1%}")
    if not found.holds:
        raise typer.Exit(Exit.FAILED)
    if not found.passes_threshold:
        raise typer.Exit(Exit.NOT_ALL_SUCCEEDED)
