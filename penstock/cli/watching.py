"""Watching a batch: a progress bar on a terminal, and now and then a line elsewhere."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import typer

from penstock.cli import shown
from penstock.cli.connection import connected, in_loop
from penstock.cli.outcome import Exit, Failure, code_of_status, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from cluster.config import Settings
    from penstock.client import Client
    from penstock.submit_views import SubmitProgress
    from penstock.submitting import ProgressCallback
    from penstock.views import BatchStatus

_LINE_EVERY_S = 5.0


class Teller(Protocol):
    """Shows a batch's status."""

    def __call__(self, status: "BatchStatus") -> None:
        """Shows it now."""


@contextlib.contextmanager
def teller() -> Iterator[Teller]:
    """Shows statuses on the standard error as they come."""
    console = shown.console(stderr=True)
    if console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task("", total=None, states="")

            def draw(status: "BatchStatus") -> None:
                moves = f"; {status.migrations:,} migrations" if status.migrations else ""
                states = f"{shown.counts(status.by_state)}; {status.steps:,} steps{moves}"
                progress.update(task, total=status.total, completed=status.ended, states=states)

            yield draw
        return
    told_s = 0.0

    def write(status: "BatchStatus") -> None:
        nonlocal told_s
        if status.terminal or time.monotonic() - told_s >= _LINE_EVERY_S:
            told_s = time.monotonic()
            say(f"{status.ended:,} of {status.total:,} ended; {shown.counts(status.by_state)}; {status.steps:,} steps")

    yield write


def _bar(console: Any) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[states]}", markup=False),
        console=console,
        refresh_per_second=10,
    )


@contextlib.contextmanager
def submission_teller() -> Iterator["ProgressCallback | None"]:
    """Shows how far the submission of a file is, where there is a terminal to show it on."""
    console = shown.console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn())
    detail = TextColumn("{task.fields[jobs]}", markup=False)
    with Progress(*columns, detail, console=console, transient=True) as progress:
        task = progress.add_task("check", total=None, jobs="")

        def draw(step: "SubmitProgress") -> None:
            progress.update(
                task, description=step.phase, total=step.total_bytes, completed=step.done_bytes,
                jobs=f"{step.jobs:,} jobs" + (f", {step.problems:,} problems" if step.problems else ""),
            )  # fmt: skip

        yield draw


async def until_settled(client: "Client", batch: str, *, timeout_s: float | None, as_json: bool) -> "BatchStatus":
    """Watches a batch until nothing in it goes on by itself; returns its last status.

    Raises:
        Failure: ``timeout_s`` is over.
    """
    last: BatchStatus | None = None
    try:
        async with asyncio.timeout(timeout_s), contextlib.aclosing(client.watch(batch)) as statuses:
            with teller() as tell:
                async for last in statuses:
                    tell(last)
                    if as_json:
                        shown.data(last)
                    if last.settled:
                        break
    except TimeoutError:
        raise Failure(
            f"batch {batch} has not ended within {timeout_s:g} s; it goes on. Watch it again: penstock watch {batch}",
            Exit.TIMED_OUT,
        ) from None
    assert last is not None
    return last


def interrupted(batch: str) -> typer.Exit:
    """Says that only the watching ended; raise what it returns."""
    say(f"stopped watching; batch {batch} goes on. Watch it again: penstock watch {batch}")
    return typer.Exit(Exit.INTERRUPTED)


def end_of(status: "BatchStatus") -> None:
    """Ends the command as the batch ended.

    Raises:
        typer.Exit: not every run succeeded.
    """
    code = code_of_status(status)
    if code is Exit.UNKNOWN:
        unknown = status.by_state["confirmation_unknown"]
        say(
            f"the outcome of {unknown:,} runs cannot be proved: "
            f"penstock unknown --batch {status.batch}, then penstock resolve RUN STEP"
        )
    elif code is Exit.NOT_ALL_SUCCEEDED:
        missed = status.total - status.by_state.get("succeeded", 0)
        say(f"{missed:,} of {status.total:,} runs did not succeed: penstock results {status.batch}")
    if code is not Exit.OK:
        raise typer.Exit(code)


def watch_batch(settings: "Settings", batch: str, timeout_s: float | None, *, as_json: bool) -> None:
    """Watches a batch, shows where it stands at last, and ends the command as the batch ended."""

    async def work() -> Any:
        async with connected(settings) as client:
            return await until_settled(client, batch, timeout_s=timeout_s, as_json=as_json)

    try:
        last = in_loop(work())
    except KeyboardInterrupt:
        raise interrupted(batch) from None
    if not as_json:
        shown.batch(last)
    end_of(last)
