"""Watching a batch: a progress bar on a terminal, and now and then a line elsewhere."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from penstock.cli import shown
from penstock.cli.connection import connected, in_loop
from penstock.cli.outcome import Exit, Failure, code_of_status, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from cluster.config import Settings
    from penstock.client import Client
    from penstock.submit_views import SubmitProgress
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


class SubmissionTeller:
    """Shows how far the submission of a file is: a bar where there is a terminal; elsewhere a line now and then while
    refused jobs wait to come back. A context manager; ``last`` is what it was told last.
    """

    def __init__(self) -> None:
        self.last: SubmitProgress | None = None
        self._progress: Progress | None = None
        self._task: Any = None
        self._told_s = 0.0

    def __enter__(self) -> Self:
        console = shown.console(stderr=True)
        if console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24))
            detail = TextColumn("{task.fields[detail]}", markup=False)
            self._progress = Progress(*columns, detail, console=console, transient=True)
            self._task = self._progress.add_task("check", total=None, detail="")
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, step: "SubmitProgress") -> None:
        """Shows it now."""
        self.last = step
        retrying = step.phase == "retry"
        detail = waiting_line(step) if retrying else _submission_line(step)
        if self._progress is not None:
            total, done = (step.jobs, step.jobs - step.waiting) if retrying else (step.total_bytes, step.done_bytes)
            self._progress.update(self._task, description=step.phase, total=total, completed=done, detail=detail)
        elif retrying and step.waiting and time.monotonic() - self._told_s >= _LINE_EVERY_S:
            self._told_s = time.monotonic()
            say(detail)


def waiting_line(step: "SubmitProgress") -> str:
    """What has become of jobs, of which some are to come back."""
    refused = f", {step.refused:,} refused for good" if step.refused else ""
    wait = f", {step.waiting:,} to come back, the next one in {shown.wait(step.next_s)}" if step.waiting else ""
    return f"{step.accepted:,} accepted{refused}{wait}"


def _submission_line(step: "SubmitProgress") -> str:
    parts = [f"{step.jobs:,} jobs"]
    parts += [f"{step.problems:,} problems"] if step.problems else []
    parts += [f"{step.refused:,} refused"] if step.refused else []
    parts += [f"{step.waiting:,} to come back"] if step.waiting else []
    return ", ".join(parts)


async def until_settled(
    client: "Client", batch: str, *, timeout_s: float | None, as_json: bool, retry_shed: bool = False
) -> "BatchStatus":
    """Watches a batch until nothing in it goes on by itself; returns its last status. With ``retry_shed``, what is shed
    comes back by the calendar.

    Raises:
        Failure: ``timeout_s`` is over.
    """
    last: BatchStatus | None = None
    try:
        watched = client.watch(batch, retry_shed=retry_shed, on_wait=_ShedTeller())
        async with asyncio.timeout(timeout_s), contextlib.aclosing(watched) as statuses:
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


class _ShedTeller:
    """Says now and then how many shed runs wait to come back."""

    def __init__(self) -> None:
        self._told_s = 0.0

    def __call__(self, waiting: int, next_s: float) -> None:
        if time.monotonic() - self._told_s >= _LINE_EVERY_S:
            self._told_s = time.monotonic()
            say(f"{waiting:,} shed runs wait to come back, the next one in {shown.wait(next_s)}")


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


def watch_batch(
    settings: "Settings", batch: str, timeout_s: float | None, *, as_json: bool, retry_shed: bool = False
) -> None:
    """Watches a batch, shows where it stands at last, and ends the command as the batch ended."""

    async def work() -> Any:
        async with connected(settings) as client:
            return await until_settled(client, batch, timeout_s=timeout_s, as_json=as_json, retry_shed=retry_shed)

    try:
        last = in_loop(work())
    except KeyboardInterrupt:
        raise interrupted(batch) from None
    if not as_json:
        shown.batch(last)
    end_of(last)
