"""Submitting a batch file: against which models, and what is told of it."""

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from penstock.cli import shown
from penstock.cli.connection import in_loop
from penstock.cli.outcome import Exit, Failure, say

if TYPE_CHECKING:
    from actors.registry import App
    from cluster.config import Settings
    from penstock.submit_views import SubmitReport


def app_at_hand(
    settings: "Settings",
    named: str | None,
    folder: Path | None,
    otherwise: str = "inputs are checked by its published schemas",
) -> "App | None":
    """The app whose models check values: the one named, or the running local deployment's if it can be imported.

    ``otherwise`` is what happens where it cannot, for people.
    """
    from actors.registry import load_app
    from cluster.config import read_deployment

    if named is not None:
        sys.path.insert(0, str((folder or Path.cwd()).absolute()))
        return load_app(named)
    recorded = read_deployment(settings.home)
    url = settings.redis_url
    if (
        recorded is None
        or not recorded.get("app")
        or url is None
        or recorded.get("redis_url") != url.get_secret_value()
    ):
        return None
    if recorded.get("app_dir"):
        sys.path.insert(0, recorded["app_dir"])
    try:
        return load_app(recorded["app"])
    except Exception as error:  # the app's own code runs here; hosts have published its schemas as well
        say(f"app {recorded['app']} cannot be imported here ({error}): {otherwise}")
        return None


def submitted(work: "Callable[[], Coroutine[Any, Any, SubmitReport]]", *, as_json: bool) -> "SubmitReport":
    """The report; problems are shown in full before the error ends the command."""
    from penstock.errors import InvalidBatch

    try:
        return in_loop(work())
    except InvalidBatch as error:
        if as_json:
            shown.data(
                {
                    "batch": error.batch,
                    "accepted": error.accepted,
                    "problem_count": error.problem_count,
                    "problems": error.problems,
                }
            )
        else:
            shown.problems(error.problems, error.problem_count, len(error.problems))
        counted = "1 problem" if error.problem_count == 1 else f"{error.problem_count:,} problems"
        raise Failure(
            f"{counted} in {error.place}; nothing was submitted (--skip-invalid leaves bad lines out)", Exit.BAD_INPUT
        ) from None
    except KeyboardInterrupt:
        say("interrupted while submitting. Submit the same file again to complete the batch: no job is made twice")
        raise typer.Exit(Exit.INTERRUPTED) from None


def tell_report(report: "SubmitReport", *, as_json: bool) -> None:
    """The batch's key (or the report as JSON) on the standard output; the rest is for people."""
    if as_json:
        shown.data(report)
    else:
        typer.echo(report.batch)
    parts = [f"{report.accepted:,} accepted"]
    if report.existing:
        parts.append(f"{report.existing:,} were there already")
    if report.conflict_count:
        parts.append(f"{report.conflict_count:,} refused: another job has their custom_id in this batch")
    if report.invalid_lines:
        parts.append(f"{report.invalid_lines:,} bad lines left out")
    say(f"batch {report.batch}: {', '.join(parts)}")
    if not as_json and report.problems:
        shown.problems(report.problems, report.problem_count, len(report.problems))
    for conflict in report.conflicts[:10]:
        say(f"  conflict: {conflict.custom_id} is run {conflict.run_id}")
