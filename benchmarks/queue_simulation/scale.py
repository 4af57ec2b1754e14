"""How cost grows with queued runs and hosts: the same queues and controller, in virtual time; ``make sim-scale``.

Each size runs in a process of its own, so that its memory is its own.
"""

import gc
import heapq
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import psutil

from admission.admission_definition import AdmissionDefinition
from admission.ordered_runs import Queued
from admission.partition_queue import PartitionQueue
from admission.queue_answers import Accepted
from admission.queue_controller import Decision, HostState, Observations, QueueController
from admission.queue_law import Arrival
from admission.values import CLASSES, Value
from benchmarks.figures import Figure, beside

COMMAND: Final = "make sim-scale"
SLOTS: Final = 20
PARTITIONS: Final = 64
TENANTS: Final = 50
STEPS: Final = 40
"""Steps of the controller while the queue is filled."""
MOST_ENDS: Final = 400_000
MEAN_MS: Final = 1500.0
SIZES: Final = (
    (10_000, 10), (100_000, 100), (1_000_000, 1000), (10_000_000, 10_000),
    (1_000_000, 10), (1_000_000, 10_000), (10_000, 10_000),
)  # fmt: skip
_LEVELS: Final = [Value(rank).level for rank in range(len(CLASSES))]


class _Deployment:
    """Partitions, hosts and the controller; it adds up the seconds that each kind of operation takes."""

    def __init__(self, queued: int, hosts: int) -> None:
        self.wanted = queued
        self.hosts = {f"host-{number}": HostState(float(SLOTS)) for number in range(hosts)}
        self.slots = hosts * SLOTS
        self.queues = [PartitionQueue(number, PARTITIONS) for number in range(PARTITIONS)]
        self.controller = QueueController(PARTITIONS)
        self.definition = AdmissionDefinition()
        self.decision = Decision(self.controller.policy, {}, {})
        self.now = 1_000_000
        self.took_s = dict.fromkeys(("submit", "claim", "end", "step"), 0.0)
        self.done = dict.fromkeys(self.took_s, 0)
        self._rng = random.Random(1)

    def step(self) -> None:
        """One period of the controller."""
        began = time.perf_counter()
        last = self.decision
        said = [queue.exchange(self.now, last.policy, last.places.get(at)) for at, queue in enumerate(self.queues)]
        hosts = {name: HostState(host.slots, host.draining) for name, host in self.hosts.items()}
        self.decision = self.controller.step(self.now, Observations(said, hosts, definition=self.definition))
        self._took("step", began, 1)

    def fill(self) -> None:
        """Submits everything, within ten virtual seconds."""
        rng, queues = self._rng, self.queues
        for stretch in range(STEPS):
            count = self.wanted * (stretch + 1) // STEPS - self.wanted * stretch // STEPS
            arrivals = [
                Arrival(
                    f"{stretch:02d}-{number:08x}", _LEVELS[int(rng.random() * 5)],
                    f"tenant-{int(rng.random() * TENANTS)}", "agent",
                )
                for number in range(count)
            ]  # fmt: skip
            began = time.perf_counter()
            for number, arrival in enumerate(arrivals):
                answer = queues[number % PARTITIONS].submit(self.now, arrival)
                assert isinstance(answer, Accepted), answer
            self._took("submit", began, count)
            self.now += 250
            self.step()

    def serve(self) -> None:
        """Fills all slots, then goes on from end to end."""
        rng, queues = self._rng, self.queues
        running: list[tuple[float, int, Queued, float]] = []
        turns = self._turns()

        def claim(now_ms: float) -> None:
            at = next(turns)
            for run in queues[at].claim(int(now_ms), 1).runs:
                service_ms = rng.expovariate(1 / MEAN_MS)
                heapq.heappush(running, (now_ms + service_ms, at, run, service_ms))

        began, count = time.perf_counter(), min(self.slots, self.wanted * 9 // 10)
        for _ in range(count):
            claim(self.now)
        self._took("claim", began, count)
        next_step = self.now + 250
        spent = 0.0
        for _ in range(min(MOST_ENDS, self.wanted - count)):
            then_ms, at, run, service_ms = heapq.heappop(running)
            while then_ms >= next_step:
                self.now = next_step
                self.step()
                next_step += 250
            began = time.perf_counter()
            queues[at].end(run, int(service_ms), int(service_ms))
            middle = time.perf_counter()
            claim(then_ms)
            ended = time.perf_counter()
            spent += middle - began
            self.took_s["claim"] += ended - middle
            self.done["claim"] += 1
            self.done["end"] += 1
        self.took_s["end"] = spent

    def _turns(self) -> Iterator[int]:
        """A partition whose best level is the best of those that a host hears of, in turns."""
        queues, at = self.queues, 0
        best = min((queue.best_level for queue in queues if queue.best_level >= 0), default=0)
        while True:
            for _ in range(PARTITIONS):
                at = (at + 1) % PARTITIONS
                if queues[at].best_level == best:
                    break
            else:
                best = min((queue.best_level for queue in queues if queue.best_level >= 0), default=0)
                continue
            yield at

    def _took(self, what: str, began: float, count: int) -> None:
        self.took_s[what] += time.perf_counter() - began
        self.done[what] += count


def one(queued: int, hosts: int) -> dict[str, Any]:
    """One size, in this process."""
    # Millions of tuples that never form a cycle: looking for cycles would be most of the time.
    gc.disable()
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    made = _Deployment(queued, hosts)
    made.step()
    made.step()
    made.took_s["step"], made.done["step"] = 0.0, 0
    made.fill()
    filled = process.memory_info().rss
    made.serve()
    per = {what: made.took_s[what] / max(1, made.done[what]) * 1e6 for what in made.took_s}
    return {
        "queued": queued, "hosts": hosts, "us": per, "memory_bytes": filled - before,
        "served": made.done["end"], "took_s": time.perf_counter() - began,
    }  # fmt: skip


def scale(most: int = 10_000_000) -> list[Figure]:
    """All sizes up to so many queued runs."""
    figures: list[Figure] = []
    for queued, hosts in SIZES:
        if queued > most:
            continue
        command = [sys.executable, "-m", __name__, str(queued), str(hosts)]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        title = f"scale: {queued:,} queued, {hosts:,} hosts"
        for what in ("submit", "claim", "end"):
            figures.append(beside(f"{title}: one {what}", said["us"][what], "µs", COMMAND))
        figures.append(
            beside(
                f"{title}: a period: 64 exchanges and a step of the controller",
                said["us"]["step"] / 1000,
                "ms",
                COMMAND,
            )
        )
        figures.append(beside(f"{title}: memory of the queue", said["memory_bytes"] / 1e6, "MB", COMMAND))
        figures.append(beside(f"{title}: all of it", said["took_s"], "s", COMMAND))
    return figures


if __name__ == "__main__":
    print(json.dumps(one(int(sys.argv[1]), int(sys.argv[2]))))
