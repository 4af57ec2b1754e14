"""Hosts, the supervisor and submitters die or freeze in the middle of a batch. The history checker judges each end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator

import pytest
from deployment import (
    QUICK_WORLD,
    SLOW_WORLD,
    Batch,
    Desk,
    host_with_runs,
    kill,
    moved_s,
    refund_desk_at,
    runs_of,
    tell,
    until_hosts,
    until_settled,
    until_share_done,
)

from cluster import reader
from cluster.embedded import EmbeddedValkey
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import Finish
from cluster.session import LocalRay
from cluster.store import Store
from penstock import Client

pytestmark = pytest.mark.ray

MOVED_FROM_DEAD_HOST_S = 2.0
REFUSED = "the store refused a write (STALE)"
THIEF = "thief~1"
MOVED_FROM_FROZEN_HOST_S = 5.0  # the lease (3 s), the next heartbeat of another host (1 s), and the claim


@pytest.fixture(scope="module")
def desk(ray_cluster: LocalRay, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One deployment for this file; every test leaves it with two hosts.

    Few partitions: a submission goes out in groups of a partition, and there are to be several.
    """
    home = tmp_path_factory.mktemp("desk")
    with refund_desk_at(ray_cluster, valkey.url, home, name="faults-host", partitions=2) as desk:
        yield desk


@pytest.fixture
def quick_world(desk: Desk) -> Iterator[None]:
    desk.world.set_faults(**QUICK_WORLD)
    yield
    desk.world.set_faults(**SLOW_WORLD)


async def test_without_a_fault_nothing_is_asked_for_twice(desk: Desk) -> None:
    batch = desk.batch("calm", 60)
    async with desk.client() as client:
        await client.submit(batch.jobs, batch=batch.key)
        await until_settled(client, batch)
        report = await desk.judged(client, batch)
        assert report.by_state == {"succeeded": 60}
        assert (report.repeated_requests, report.migrations) == (0, 0)


async def test_a_host_frozen_for_longer_than_its_lease_comes_back_as_somebody_else(desk: Desk) -> None:
    batch = desk.batch("host-frozen", 100)
    async with desk.client() as client:
        store = client.store
        await until_hosts(store, 2)
        await client.submit(batch.jobs, batch=batch.key)
        await until_share_done(client, batch, 0.3)
        host, info, runs = await host_with_runs(client, batch)
        frozen = kill(info["pid"], signal.SIGSTOP)
        try:
            took_s = await moved_s(store, runs, host, frozen)
            print(f"SIGSTOP of a host: its {len(runs)} runs were running elsewhere after {took_s:.3f} s")
        finally:
            kill(info["pid"], signal.SIGCONT)
        assert await runs_of(store, host) == []
        for partition in store.partitions:  # nor can it claim any more under its old name
            assert await store.claim(partition, host, 1, ["refund-desk", "1"]) is None
        await until_hosts(store, 2, without=[host])
        pids = {name: said["pid"] for name, said in (await store.hosts()).items() if said["label"] == info["label"]}
        assert list(pids.values()) == [info["pid"]]  # the same process under another name
        assert host not in pids
        assert (await until_settled(client, batch)).by_state == {"succeeded": 100}
        assert took_s <= MOVED_FROM_FROZEN_HOST_S
        report = await desk.judged(client, batch)
        assert report.migrated_runs == len(runs)
    log = desk.log_of(info["pid"])
    dropped = re.search(rf"host {host} was declared dead; (\d+) runs dropped, coming back anew", log)
    assert dropped is not None, log
    # Some may have been dropped already, because an answer from the world came first and its write was refused.
    assert int(dropped[1]) + log.count(REFUSED) >= len(runs), log


async def test_what_a_late_owner_writes_is_refused(desk: Desk) -> None:
    """Runs are taken from a host that works on and is told nothing: its next write about each of them is refused."""
    batch = desk.batch("late-owner", 100)
    async with desk.client() as client:
        store = client.store
        before = await until_hosts(store, 2)
        await client.submit(batch.jobs, batch=batch.key)
        await until_share_done(client, batch, 0.3)
        host, info, runs = await host_with_runs(client, batch)
        refused_before = desk.log_of(info["pid"]).count(REFUSED)
        fences = {record.id: record.fence for record in await reader.records(store, runs)}
        await store.release(0, THIEF, "so that the server knows the script", [])
        await asyncio.gather(*(_take(store, partition, host, runs) for partition in store.partitions))
        assert await runs_of(store, THIEF) == runs
        async with asyncio.timeout(10):
            while (refused := desk.log_of(info["pid"]).count(REFUSED) - refused_before) < len(runs):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        print(f"taken from a living owner: {len(runs)} runs, {refused} of its writes refused")
        for run_id, fence in fences.items():
            end = Finish(run_id, fence, RunState.SUCCEEDED, "", b"late", b"")
            assert await store.finish(partition_of(run_id), host, [end]) == {run_id: "STALE"}
        for partition in store.partitions:
            given_back = [(run_id, None) for run_id in runs if partition_of(run_id) == partition]
            await store.release(partition, THIEF, "given back by a test", given_back)
        assert (await until_settled(client, batch)).by_state == {"succeeded": 100}
        report = await desk.judged(client, batch)
        assert report.migrations == 2 * len(runs)
        assert await until_hosts(store, 2) == before


async def _take(store: Store, partition: int, host: str, runs: list[str]) -> None:
    """Takes a host's runs of a partition. Both calls go out in one write and so in one transaction: nobody else, and
    not the host itself, can claim the runs in between.
    """
    mine: list[tuple[str, int | None]] = [(run_id, None) for run_id in runs if partition_of(run_id) == partition]
    await asyncio.gather(
        store.release(partition, host, "taken by a test", mine),
        store.claim(partition, THIEF, len(mine), ["refund-desk", "1"]),
    )


async def test_a_killed_supervisor_touches_no_run(desk: Desk) -> None:
    batch = desk.batch("supervisor-killed", 80)
    async with desk.client() as client:
        before = await until_hosts(client.store, 2)
        await client.submit(batch.jobs, batch=batch.key)
        await until_share_done(client, batch, 0.3)
        (killed,) = desk.supervisor_pids()
        kill(killed, signal.SIGKILL)
        assert (await until_settled(client, batch)).by_state == {"succeeded": 80}
        report = await desk.judged(client, batch)
        assert (report.repeated_requests, report.migrations) == (0, 0)
        # Its next life knows the same hosts: deploying again starts nothing.
        desk.deploy()
        (back,) = desk.supervisor_pids()
        assert back != killed
        assert await until_hosts(client.store, 2) == before


async def test_a_killed_host(desk: Desk) -> None:
    batch = desk.batch("host-killed", 120)
    async with desk.client() as client:
        before = await until_hosts(client.store, 2)
        await client.submit(batch.jobs, batch=batch.key)
        await until_share_done(client, batch, 0.3)
        host, info, runs = await host_with_runs(client, batch)
        struck = kill(info["pid"], signal.SIGKILL)
        took_s = await moved_s(client.store, runs, host, struck)
        print(f"SIGKILL of a host: its {len(runs)} runs were running elsewhere after {took_s:.3f} s")
        status = await until_settled(client, batch)
        assert status.by_state == {"succeeded": 120}
        assert took_s <= MOVED_FROM_DEAD_HOST_S
        report = await desk.judged(client, batch)
        assert report.migrated_runs > 0
        after = await until_hosts(client.store, 2, without=[host])
        assert len(after & before) == 1


async def _until_accepted(client: Client, batch: Batch, least: int) -> int:
    async with asyncio.timeout(30):
        while (await client.deployment()).batches[0].batch != batch.key:  # noqa: ASYNC110 - polls a store
            await asyncio.sleep(0.005)
        while (total := (await client.status(batch.key)).total) < least:  # noqa: ASYNC110 - polls a store
            await asyncio.sleep(0.005)
    return total


@pytest.mark.usefixtures("quick_world")
async def test_an_interrupted_and_a_killed_submitter_are_made_good_by_submitting_again(desk: Desk) -> None:
    batch = desk.batch("submitter-struck", 600)
    async with desk.client() as client:
        for least, number in ((1, signal.SIGINT), (257, signal.SIGKILL)):
            process = desk.submitter(batch)
            with process:
                tell(process, "go")
                accepted = await _until_accepted(client, batch, least)
                process.send_signal(number)
                process.wait(10)
            print(f"{number.name} of the submitter after {accepted} of 600 jobs")
            assert process.returncode != 0
            assert accepted < 600
        there = (await client.status(batch.key)).total
        assert 257 <= there < 600
        report = await client.submit(batch.jobs, batch=batch.key)
        assert (report.accepted, report.existing, report.conflict_count) == (600 - there, there, 0)
        assert (await until_settled(client, batch)).by_state == {"succeeded": 600}
        judged = await desk.judged(client, batch)
        assert judged.repeated_requests == 0


@pytest.mark.usefixtures("quick_world")
async def test_two_submitters_of_one_batch_make_every_job_once(desk: Desk) -> None:
    batch = desk.batch("two-submitters", 400)
    processes = [desk.submitter(batch), desk.submitter(batch, backwards=True)]
    for process in processes:
        tell(process, "go")
    reports = []
    for process in processes:
        said, complained = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0, complained
        reports.append(json.loads(said))
    print(f"two submitters: {reports}")
    assert sum(report["accepted"] for report in reports) == 400
    assert sum(report["existing"] for report in reports) == 400
    assert all(report["accepted"] for report in reports)
    async with desk.client() as client:
        assert (await until_settled(client, batch)).by_state == {"succeeded": 400}
        report = await desk.judged(client, batch)
        assert report.repeated_requests == 0
