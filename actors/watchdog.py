"""Detects an agent that never awaits and so blocks its host's event loop.

A thread, because the loop is the patient. While the loop stands still the thread renews the host's lease, so that the
blocking run is not handed to the next host to block; it names the run in the log and in ``why``; and when the limit
is reached it ends that run as failed and the process with it: nothing else gets a blocked thread to move. The
host's other runs go on elsewhere at once.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import redis

from actors.engine import RunEngine
from actors.run import Run
from actors.verdict import Verdict, end_without_head, failed
from cluster import scripts
from cluster.config import Settings
from cluster.keys import Keys, partition_of
from cluster.store import Store

if TYPE_CHECKING:
    from actors.host_runtime import HostRuntime

_BEAT_S: Final = 0.25
_NOTES_KEPT_MS: Final = 86_400_000
EXIT_CODE: Final = 70
BLOCKED: Final = "event_loop_blocked"
_LOG: Final = logging.getLogger("penstock.watchdog")


async def forget_old_notes(store: Store, now_ms: int) -> None:
    """Removes what was said of runs more than a day ago: no script can, since notes and runs are in different slots."""

    def kept(note: str) -> bool:
        try:
            return bool(json.loads(note)["at_ms"] > now_ms - _NOTES_KEPT_MS)
        except (ValueError, TypeError, KeyError):
            return False

    key = store.keys.notes
    old = [run_id for run_id, note in (await store.fields(key)).items() if not kept(note)]
    if old:
        await store.command(key, "HDEL", key, *old)


class Watchdog:
    """Watches one host's event loop from a thread of its own."""

    def __init__(self, settings: Settings, host: "HostRuntime") -> None:
        self._settings = settings
        self._host = host
        self._beaten = time.monotonic()
        self._loop_thread = threading.get_ident()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="penstock-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch; call it on the loop."""
        self._loop_thread = threading.get_ident()
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        if not self._stopping.is_set():
            self._host.loop.call_later(_BEAT_S, self._beat)

    def _watch(self) -> None:
        warned = 0.0
        looked = time.monotonic()
        while not self._stopping.wait(_BEAT_S):
            now = time.monotonic()
            frozen = now - looked > 4 * _BEAT_S
            looked = now
            if frozen:
                # This whole process stood still (it was stopped, or starved): the loop is not to blame.
                self._beaten = now
            blocked_s = now - self._beaten
            if blocked_s < self._settings.loop_block_warn_s:
                warned = 0.0
                continue
            engine, stack = self._culprit()
            if not warned:
                warned = now
                self._report(engine, stack, blocked_s)
            self._renew()
            if blocked_s >= self._settings.loop_block_limit_s:
                self._end(engine, stack, blocked_s)

    def _culprit(self) -> tuple[RunEngine | None, str]:
        """The run whose code the loop's thread is in, and where."""
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame, limit=6)) if frame is not None else ""
        walk: FrameType | None = frame
        while walk is not None:
            for value in list(walk.f_locals.values()):
                if isinstance(value, Run):
                    return value._engine, stack
                if isinstance(value, RunEngine):
                    return value, stack
            walk = walk.f_back
        return None, stack

    def _report(self, engine: RunEngine | None, stack: str, blocked_s: float) -> None:
        culprit = f"run {engine.claim.id} ({engine.claim.agent})" if engine else "no run of ours"
        _LOG.error(
            "host %s: the event loop is blocked for %.1f s by %s:\n%s", self._host.host, blocked_s, culprit, stack
        )
        if engine is None:
            return
        note = {
            "note": "blocks its host's event loop: it computes or waits without await",
            "host": self._host.host,
            "blocked_s": round(blocked_s, 1),
            "at_ms": int(time.time() * 1000),
            "stack": stack[-1500:],
        }
        keys = self._keys()
        self._try("note", lambda store: store.hset(keys.notes, engine.claim.id, json.dumps(note)))

    def _renew(self) -> None:
        keys = self._keys()
        lease_ms = int(self._settings.lease_s * 1000)
        self._try(
            "renew the lease",
            lambda store: store.eval(scripts.HEARTBEAT.text, 3, *keys.hosts, self._host.host, lease_ms, ""),
        )

    def _end(self, engine: RunEngine | None, stack: str, blocked_s: float) -> None:
        if engine is not None:
            last = stack.strip().splitlines()[-2:] if stack else []
            message = f"the agent blocked its host's event loop for {blocked_s:.0f} s without await: {' '.join(last)}"
            self._end_run(engine, failed("EventLoopBlocked", message, reason=BLOCKED))
        _LOG.critical("host %s: ends itself, its event loop has been blocked for %.1f s", self._host.host, blocked_s)
        logging.shutdown()
        os._exit(EXIT_CODE)

    def _end_run(self, engine: RunEngine, verdict: Verdict) -> None:
        keys, run_id = self._keys(), engine.claim.id
        if engine.has_effects:
            # They may be open, or have to be undone: the next host ends the run, and its code does not run for that.
            self._try("have the run ended", lambda store: store.hset(keys.run(run_id), "cancel", BLOCKED))
            return
        # Sealed without a head: what is on its way to the journal while the loop stands still, nobody knows here.
        seal = end_without_head(engine.claim, engine.agent.version, verdict).seal
        end = (run_id, engine.claim.fence, self._host.host, verdict.state.value, verdict.reason, b"", verdict.error)
        arguments = (self._settings.retention.argument, *end, "", seal)
        queue = keys.queues[partition_of(run_id)]
        self._try("end the run", lambda store: store.eval(scripts.FINISH.text, 1, queue, *arguments))

    def _keys(self) -> Keys:
        return self._host.store.keys

    def _try(self, what: str, act: Any) -> None:
        url = self._settings.redis_url
        if url is None:
            return
        options: dict[str, Any] = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
        try:
            if self._host.store.clustered:
                with redis.RedisCluster.from_url(url.get_secret_value(), **options) as cluster:
                    act(cluster)
            else:
                with redis.Redis.from_url(url.get_secret_value(), **options) as store:
                    act(store)
        except (redis.RedisError, OSError) as error:
            _LOG.error("host %s: the watchdog could not %s: %s", self._host.host, what, error)
