"""Submitting a batch file: against which models, and what is told of it."""

import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from penstock.cli import shown
from penstock.cli.connection import in_loop
from penstock.cli.outcome import Exit, Failure, say

if TYPE_CHECKING:
    from actors.registry import App
    from cluster.config import Settings
    from penstock.cli.watching import SubmissionTeller
    from penstock.refusals import RefusedCallback
    from penstock.submit_views import Refusal, SubmitReport


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


def submitted(
    work: "Callable[[], Coroutine[Any, Any, SubmitReport]]", teller: "SubmissionTeller", *, as_json: bool
) -> "SubmitReport":
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
        from penstock.cli.watching import waiting_line

        last = teller.last
        so_far = f" ({waiting_line(last)})" if last is not None and last.phase != "check" else ""
        say(
            f"interrupted while submitting{so_far}. "
            "Submit the same file again to complete the batch: no job is made twice"
        )
        raise typer.Exit(Exit.INTERRUPTED) from None


@contextlib.contextmanager
def refused_lines(place: Path | None) -> "Iterator[RefusedCallback | None]":
    """Takes refused jobs and writes them to a file as JSON lines; nothing without one.

    Raises:
        OSError: the file cannot be written.
    """
    if place is None:
        yield None
        return
    import msgspec

    encoder = msgspec.json.Encoder()
    with place.open("wb") as file:

        def write(refusal: "Refusal") -> None:
            file.write(encoder.encode(refusal) + b"\n")

        yield write


def tell_report(report: "SubmitReport", *, as_json: bool, all_in: Path | None = None) -> None:
    """The batch's key (or the report as JSON) on the standard output; the rest is for people. ``all_in`` is the file
    that has all refusals.
    """
    if as_json:
        shown.data(report)
    else:
        typer.echo(report.batch)
    parts = [f"{report.accepted:,} accepted"]
    if report.existing:
        parts.append(f"{report.existing:,} were there already")
    if report.refused:
        parts.append(f"{report.refused:,} refused")
    if report.conflict_count:
        parts.append(f"{report.conflict_count:,} refused: another job has their custom_id in this batch")
    if report.invalid_lines:
        parts.append(f"{report.invalid_lines:,} bad lines left out")
    if report.retries:
        parts.append(f"refused jobs came back {report.retries:,} times")
    say(f"batch {report.batch}: {', '.join(parts)}")
    if not as_json and report.problems:
        shown.problems(report.problems, report.problem_count, len(report.problems))
    if not as_json:
        _placements(report)
        _refusals(report, all_in)
    for conflict in report.conflicts[:10]:
        say(f"  conflict: {conflict.custom_id} is run {conflict.run_id}")


def _placements(report: "SubmitReport") -> None:
    """When the accepted ones are predicted to start."""
    first, last = report.first, report.last
    if first is None or last is None:
        return
    if report.accepted == 1 or first.run_id == last.run_id:
        say(f"predicted start: in {shown.wait(last.wait_s)} ({last.custom_id}, about place {last.place:,})")
        return
    say(
        f"predicted starts: in {shown.wait(first.wait_s)} ({first.custom_id}, about place {first.place:,}) "
        f"to {shown.wait(last.wait_s)} ({last.custom_id}, about place {last.place:,})"
    )


def _refusals(report: "SubmitReport", all_in: Path | None) -> None:
    """Why jobs were refused, and what to do about it."""
    if not report.refused:
        return
    shown.refusals(report)
    named = sum(each.by_itself for each in report.reasons)
    if all_in is not None:
        say(f"all {report.refused:,} refused jobs are in {all_in}")
    else:
        say("which ones: submit again with --refused FILE, or --json for the first ones")
    if named:
        say("to come back when there is room: submit the same file again with --retry-shed; no job is made twice")


def end_of_submission(report: "SubmitReport") -> None:
    """Ends the command as the submission ended.

    Raises:
        typer.Exit: not every job is in.
    """
    if report.conflict_count:
        raise typer.Exit(Exit.BAD_INPUT)
    if report.refused:
        raise typer.Exit(Exit.REFUSED)
