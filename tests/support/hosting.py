"""Hosts in the test's own event loop, against a real server: start them, lose them, submit to them, wait for ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from actors.admission_runtime import AdmissionRuntime
from actors.contract import Agent, Tool
from actors.gatekeeper import Link
from actors.host_runtime import HostRuntime
from actors.hub_runtime import HubRuntime
from actors.job import Job, new_run
from actors.journal import Entry, ErrorRecord, decode_entry, decode_error
from actors.registry import App
from admission.dependency import Dependency
from cluster import reader
from cluster.config import Settings
from cluster.keys import partition_of
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import RunRecord
from cluster.store import Store

PATIENCE_S = 10.0
# Jobs of tests carry no grants; what a policy does with them is tested with policies of its own.
ALLOW_EVERYTHING = """\
rules:
  - name: tests-may-do-everything
    outcome: allow
    tiers: [read, draft, write, irreversible]
"""
ENDS = TERMINAL | {RunState.CONFIRMATION_UNKNOWN}


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str = "it") -> None:
    """Waits for something that tells nobody when it happens."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        said = condition()
        if said if isinstance(said, bool) else await said:
            return
        assert loop.time() < deadline, f"{what} did not happen within {PATIENCE_S} s"
        await asyncio.sleep(0.005)


@dataclass
class Spine:
    """One deployment: a name of its own on the shared server, and hosts that serve ``agents``."""

    settings: Settings
    store: Store
    agents: tuple[Agent[Any, Any], ...]
    hosts: list[HostRuntime] = field(default_factory=list)
    dependencies: dict[str, Dependency] = field(default_factory=dict)
    tools: Sequence[Tool[Any, Any]] = ()
    hubs: dict[str, HubRuntime] = field(default_factory=dict)
    hub_is_cut_off: bool = False
    controllers: list[AdmissionRuntime] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    async def host(self, *agents: Agent[Any, Any], watchdog: bool = False, **settings: Any) -> HostRuntime:
        """Starts a host that serves the deployment's agents, or only the given ones."""
        served = {agent.name: agent for agent in agents or self.agents}
        chosen = self.settings.model_copy(update=settings)
        app = App("test", served, self.dependencies, tuple(self.tools))
        host = HostRuntime(chosen, app, f"h{next(self._numbers)}", watchdog=watchdog, links=self._link)
        await host.start()
        self.hosts.append(host)
        return host

    def _link(self, name: str) -> Link:
        async def send(raw: bytes) -> bytes:
            if self.hub_is_cut_off:
                raise ConnectionError("cut off by the test")
            return self.hubs[name].exchange(raw)

        return send

    async def start_hub(self, name: str) -> HubRuntime:
        """Starts a hub of one dependency in this event loop, in the place of the one that is there."""
        self.hubs[name] = hub = HubRuntime(self.settings, self.dependencies[name])
        await hub.start()
        return hub

    async def control(self) -> AdmissionRuntime:
        """Starts an admission controller in this event loop."""
        controller = AdmissionRuntime(self.settings)
        self.controllers.append(controller)
        await controller.start()
        return controller

    async def vanish(self, host: HostRuntime) -> str:
        """The host dies without a word; its last identity. Its runs stay where they are until it is reaped."""
        identity = host.host
        await host.abandon()
        return identity

    async def reap(self, identity: str) -> int:
        """Takes a host's runs away from it, whether it is dead or not; how many."""
        moved = [await self.store.reap(partition, identity) for partition in self.store.partitions]
        await self.store.forget_host(identity)
        return sum(moved)

    async def lose(self, host: HostRuntime) -> int:
        """The host dies, and its runs go back to the queue; how many."""
        return await self.reap(await self.vanish(host))

    async def submit(self, agent: Agent[Any, Any] | str, payload: Any = None, **fields: Any) -> str:
        """One job; the id of its run."""
        name = agent if isinstance(agent, str) else agent.name
        job = Job(custom_id=f"job-{uuid.uuid4().hex}", agent=name, input=payload, **fields)
        run = new_run(job, "b", self.store.keys.partitions)
        await self.store.submit("b", partition_of(run.id), [run])
        return run.id

    async def record(self, run_id: str) -> RunRecord:
        found = await reader.record(self.store, run_id)
        assert found is not None, f"{run_id} has no record"
        return found

    async def state(self, run_id: str, *states: RunState) -> RunRecord:
        """Waits until the run is in one of these states."""
        found: RunRecord | None = None

        async def there() -> bool:
            nonlocal found
            found = await reader.record(self.store, run_id)
            return found is not None and found.state in states

        try:
            await until(there, f"{run_id} in {'/'.join(states)}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {found}") from None
        assert found is not None
        return found

    async def end(self, run_id: str) -> RunRecord:
        """Waits for the run's end (or for confirmation_unknown)."""
        return await self.state(run_id, *ENDS)

    async def waits(self, run_id: str) -> RunRecord:
        """Waits until the run is unloaded and no host holds anything of it."""
        record = await self.state(run_id, RunState.WAITING)
        await until(lambda: not any(run_id in host.runs for host in self.hosts), f"{run_id} unloaded")
        return record

    async def result(self, agent: Agent[Any, Any], payload: Any = None, **fields: Any) -> Any:
        """Submits a job, waits, and reads its output as the agent's type."""
        record = await self.end(await self.submit(agent, payload, **fields))
        return output(agent, record)

    async def failure(self, agent: Agent[Any, Any], payload: Any = None, **fields: Any) -> ErrorRecord:
        """Submits a job that is to fail; its error."""
        record = await self.end(await self.submit(agent, payload, **fields))
        assert record.state is RunState.FAILED, record
        return decode_error(record.error)

    async def journal(self, run_id: str) -> list[Entry]:
        return [decode_entry(raw) for raw in await reader.journal(self.store, run_id)]

    async def cancel(self, run_id: str, reason: str = "cancelled") -> str:
        (word,) = await self.store.cancel(partition_of(run_id), reason, [run_id])
        return word

    async def counts(self) -> dict[str, int]:
        return (await reader.deployment_counts(self.store)).by_state


def output(agent: Agent[Any, Any], record: RunRecord) -> Any:
    """A succeeded run's output as the agent's type."""
    assert record.state is RunState.SUCCEEDED, record
    return agent.output.load(record.output)


@contextlib.asynccontextmanager
async def spine(
    redis_url: str,
    *agents: Agent[Any, Any],
    dependencies: Sequence[Dependency] = (),
    tools: Sequence[Tool[Any, Any]] = (),
    **settings: Any,
) -> AsyncIterator[Spine]:
    """A deployment with hubs and without hosts yet; all of its hosts and hubs are closed at the end."""
    fields: dict[str, Any] = {
        "name": f"t{uuid.uuid4().hex[:12]}", "partitions": 2, "heartbeat_s": 0.2, "lease_s": 1.5, "slots_per_host": 100,
        "policy_yaml": ALLOW_EVERYTHING,
    }  # fmt: skip
    chosen = Settings(redis_url=SecretStr(redis_url), **(fields | settings))
    store = await Store.open(chosen)
    deployment = Spine(chosen, store, agents, dependencies={each.name: each for each in dependencies}, tools=tools)
    try:
        for name in deployment.dependencies:
            await deployment.start_hub(name)
        yield deployment
    finally:
        for host in deployment.hosts:
            await host.abandon()
        for hub in deployment.hubs.values():
            await hub.abandon()
        for controller in deployment.controllers:
            await controller.abandon()
        await store.close()
