"""The demonstration: 1,000 agent runs on a local cluster, a host killed in the middle, and what became of them.

Everything that it needs is started for it alone and stopped at its end, however that comes. What it shows is read
from where it is true: states and steps from the store, side effects from the ledger of the world outside.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import redis
from rich.console import Console

from actors.errors import PenstockError
from cluster.embedded import EmbeddedValkeyError
from cluster.errors import StoreError
from cluster.keys import Keys
from cluster.lifecycle import RunState
from cluster.processes import ProcessRecord
from cluster.session import RaySessionError
from cluster.store import Store
from penstock.demo_display import HostLife, Kill, Outcome, Picture, Presenter, Verdict, closing
from penstock.demo_stage import NODES, Interrupts, Stage, build
from penstock.demo_world import DemoError, batch_file, model_in_use
from penstock.history import check_batch
from penstock.views import BatchStatus, HostView

__all__ = ["run_demo"]

KILL_AT: Final = 0.45
STALLED_S: Final = 120.0
_EXPECTED: Final = (PenstockError, StoreError, RaySessionError, EmbeddedValkeyError)
_BATCH: Final = "demo"
_TICK_S: Final = 0.05
_QUICK_TICK_S: Final = 0.01
_HOSTS_S: Final = 0.4


class Owners:
    """Who owns which runs, read from the store's indices with few small questions."""

    def __init__(self, stage: Stage) -> None:
        assert stage.settings.redis_url is not None
        self._keys = Keys(stage.settings.name, stage.settings.partitions)
        self._redis: Any = redis.Redis.from_url(stage.settings.redis_url.get_secret_value(), decode_responses=True)

    def counts(self, hosts: list[str]) -> dict[str, int]:
        """How many runs each host owns."""
        answers = iter(self._ask("SCARD", [key for host in hosts for key in self._indices(host)]))
        return {host: sum(next(answers) for _ in self._indices(host)) for host in hosts}

    def owned(self, host: str) -> set[str]:
        """The runs of a host."""
        return set().union(*self._ask("SMEMBERS", self._indices(host)))

    def not_elsewhere(self, run_ids: set[str], host: str) -> set[str]:
        """Those runs that still belong to ``host`` or wait in the queue since."""
        ordered = sorted(run_ids)
        records = self._ask("HMGET", [self._keys.run(run_id) for run_id in ordered], "state", "host")
        return {
            run_id
            for run_id, (state, owner) in zip(ordered, records, strict=True)
            if state == RunState.QUEUED or (state == RunState.RUNNING and owner == host)
        }

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _indices(self, host: str) -> list[str]:
        return [self._keys.of(partition, f"owned:{host}") for partition in range(self._keys.partitions)]

    def _ask(self, command: str, keys: list[str], *arguments: str) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.execute_command(command, key, *arguments)
            answers: list[Any] = pipe.execute()
        return answers


class Batch:
    """The batch under way: what is known of it, and what is done to it."""

    def __init__(self, stage: Stage, presenter: Presenter, owners: Owners, jobs: int, kill: bool) -> None:
        self.kill_wanted = kill
        self.picture = Picture(jobs)
        self._stage = stage
        self._presenter = presenter
        self._owners = owners
        self._moving: set[str] = set()
        self._hosts_s = 0.0

    def watch(self, interrupts: Interrupts) -> float:
        """Show it until nothing goes on any more; returns when that was, in seconds since the submission."""
        before, changed_s = (-1, -1), 0.0
        while True:
            interrupts.check()
            status, now_s = self._stage.client.status(_BATCH), self._presenter.elapsed_s
            self.picture.update(status, now_s)
            if status.settled:
                return now_s
            if (status.steps, status.ended) != before:
                before, changed_s = (status.steps, status.ended), now_s
            elif now_s - changed_s > STALLED_S:
                self._presenter.say(f"nothing has changed for {STALLED_S:.0f} s: giving up", "bold red")
                return now_s
            self._events(status, now_s)
            self._presenter.show(self.picture)
            time.sleep(_QUICK_TICK_S if self._moving else _TICK_S)

    def _events(self, status: BatchStatus, now_s: float) -> None:
        if now_s >= self._hosts_s:
            self._look_at_hosts()
            self._hosts_s = now_s + _HOSTS_S
        if self.kill_wanted and status.ended >= KILL_AT * self.picture.jobs:
            self._kill_a_host(status)
        if self._moving:
            self._follow_the_moved()

    def _look_at_hosts(self) -> None:
        """Who is there now, and with how many runs."""
        there = {view.host: view for view in self._stage.client.hosts()}
        lives = self.picture.lives
        for host in there.keys() - {life.host for life in lives}:
            lives.append(self._new_life(there[host]))
        runs = self._owners.counts([life.host for life in lives])
        for life in lives:
            found = there.get(life.host)
            life.runs = runs[life.host]
            life.registered = found is not None
            life.lease_left_s = found.lease_left_s if found else 0.0
        lives.sort(key=lambda life: (life.label, life.since_s))

    def _new_life(self, view: HostView) -> HostLife:
        label, pid = str(view.info["label"]), int(view.info["pid"])
        before = {life.pid for life in self.picture.lives if life.label == label}
        if pid in before:
            self._presenter.say(
                f"{label} could not renew its lease in time and lost its runs; it begins anew", "yellow"
            )
        elif before:
            self._presenter.say(f"Ray has restarted {label} as process {pid}", "green")
        restarted = bool(before) and pid not in before
        return HostLife(view.host, label, pid, self._presenter.elapsed_s, restarted=restarted)

    def _kill_a_host(self, status: BatchStatus) -> None:
        """SIGKILL to the host with the most runs, as when its process is lost. Not before it has any."""
        self._look_at_hosts()
        living = [life for life in self.picture.lives if life.registered and life.runs]
        victim = max(living, key=lambda life: life.runs, default=None)
        process = ProcessRecord.of(victim.pid) if victim else None
        if victim is None or process is None:
            return
        runs = self._owners.owned(victim.host)
        if not process.send(signal.SIGKILL):
            return
        self.kill_wanted = False
        self._moving = runs
        at_s = victim.killed_at_s = self._presenter.elapsed_s
        self.picture.kill = Kill(victim.host, victim.label, victim.pid, at_s, len(runs), status.ended)
        self._presenter.say(
            f"SIGKILL to {victim.label}, process {victim.pid}: {status.ended:,} of {self.picture.jobs:,} jobs have "
            f"ended, and it has {len(runs):,} runs",
            "bold red",
        )

    def _follow_the_moved(self) -> None:
        """Notice when all runs of the killed host were taken from it, and when all of them are on another one."""
        kill = self.picture.kill
        assert kill is not None
        since_s = self._presenter.elapsed_s - kill.at_s
        if kill.taken_s is None and not self._owners.owned(kill.host):
            kill.taken_s = since_s
            self._presenter.say(f"its runs are taken over, {since_s:.2f} s after the kill", "green")
        self._moving = self._owners.not_elsewhere(self._moving, kill.host)
        if not self._moving:
            kill.moved_s = since_s
            self._presenter.say(f"all {kill.runs:,} go on elsewhere, {since_s:.1f} s after the kill", "green")


def _play(stage: Stage, jobs: int, kill: bool, presenter: Presenter, interrupts: Interrupts) -> Outcome:
    file, name = batch_file(stage.examples, jobs)
    with contextlib.closing(Owners(stage)) as owners:
        presenter.start_clock()
        report = stage.client.submit_file(file, batch=_BATCH)
        presenter.say(f"{report.accepted:,} jobs of {name} are submitted, and durable")
        batch = Batch(stage, presenter, owners, jobs, kill)
        with presenter.moving():
            wall_s = batch.watch(interrupts)
    if batch.kill_wanted:
        presenter.say("no host was killed: the batch was over before one could be", "yellow")
    status = stage.client.status(_BATCH)
    with presenter.busy("asking the outside world for its ledger, and checking the history"):
        verdict = asyncio.run(_check(stage, jobs))
        return Outcome(status, wall_s, stage.world.witness(), verdict, batch.picture.kill)


async def _check(stage: Stage, jobs: int) -> Verdict:
    store = await Store.open(stage.settings)
    try:
        report = await check_batch(store, _BATCH, stage.world.keys())
    finally:
        await store.close()
    checked = f"{report.runs:,} runs, {report.steps:,} steps and {report.effects:,} effects against the ledger"
    violations = [str(violation) for violation in report.violations]
    if report.runs != jobs:
        violations.append(f"{jobs:,} jobs were submitted, and there are {report.runs:,} runs")
    return Verdict(checked, violations)


def _figures(outcome: Outcome) -> Mapping[str, Any]:
    return {
        "jobs": outcome.status.total,
        "by_state": outcome.status.by_state,
        "terminal": outcome.status.terminal,
        "steps": outcome.status.steps,
        "migrated_runs": outcome.status.migrated_runs,
        "duplicate_effects": outcome.witness.duplicate_effects,
        "wall_s": round(outcome.wall_s, 3),
    }


def _check_arguments(jobs: int, json_file: Path | None) -> None:
    if jobs < 1:
        raise DemoError(f"--jobs {jobs}: give at least 1")
    if json_file is not None:
        target = json_file if json_file.exists() else json_file.absolute().parent
        if json_file.is_dir() or not os.access(target, os.W_OK):
            raise DemoError(f"--json {json_file}: cannot be written to; give a file in a folder that exists")


def run_demo(
    *, jobs: int = 1000, json_file: Path | None = None, kill: bool = True, console: Console | None = None
) -> int:
    """Give the demonstration; to be called in the main thread.

    Args:
        jobs: how many of the example's jobs to submit.
        json_file: where to write the figures as well.
        kill: whether to kill a host on the way.
        console: where to show it.

    Returns:
        The exit code: 0 when every job ended, nothing happened twice and the history holds; 1 when not, or when it
        could not be given; 128 + the signal's number after Ctrl-C and the like.
    """
    presenter = Presenter(console or Console())
    began_s = time.monotonic()
    outcome: Outcome | None = None
    with Interrupts() as interrupts:
        try:
            _check_arguments(jobs, json_file)
            stack = contextlib.ExitStack()
            try:
                try:
                    outcome = _run(stack, jobs, json_file, kill, presenter, interrupts)
                finally:
                    interrupts.disarm()
            finally:
                _stop(stack, presenter)
            presenter.say(f"everything is stopped; {time.monotonic() - began_s:.0f} s in all")
        except BaseException as error:
            # What else fails in something that was broken off is no news. Ray makes another exception of ours.
            if interrupts.number is None:
                if not isinstance(error, _EXPECTED):
                    raise
                presenter.say(f"the demonstration failed: {error}", "bold red")
    if interrupts.number is not None:
        with contextlib.suppress(OSError):
            presenter.say(f"stopped by {signal.Signals(interrupts.number).name}", "yellow")
        return 128 + interrupts.number
    return 0 if outcome is not None and outcome.holds else 1


def _stop(stack: contextlib.ExitStack, presenter: Presenter) -> None:
    """Stop everything, also where nothing can be shown any more (a terminal that was closed)."""
    with contextlib.ExitStack() as showing:
        with contextlib.suppress(OSError):
            showing.enter_context(presenter.busy("stopping everything that was started"))
        stack.close()


def _run(
    stack: contextlib.ExitStack,
    jobs: int,
    json_file: Path | None,
    kill: bool,
    presenter: Presenter,
    interrupts: Interrupts,
) -> Outcome:
    with presenter.busy(f"starting Valkey, {NODES} Ray nodes and the outside world"):
        began_s = time.monotonic()
        stage = build(stack)
    presenter.say(
        f"ready after {time.monotonic() - began_s:.1f} s: Valkey (appendfsync always), {NODES} Ray nodes with "
        f"{stage.hosts} hosts, the outside world; the model is {model_in_use()}"
    )
    outcome = _play(stage, jobs, kill, presenter, interrupts)
    presenter.console.print(closing(outcome))
    if json_file is not None:
        json_file.write_text(json.dumps(_figures(outcome)) + "\n", encoding="utf-8")
    return outcome
