"""Ids of runs and names of keys: the same for ever, and where a cluster wants them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from cluster.keys import Keys, child_run_id, digest, job_run_id, partition_of

texts = st.text(max_size=20)
counts = st.integers(1, 256)


@given(texts, texts, counts)
def test_a_run_id_names_its_partition(batch: str, custom_id: str, partitions: int) -> None:
    run_id = job_run_id(batch, custom_id, partitions)
    assert run_id == job_run_id(batch, custom_id, partitions)
    assert re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{24}", run_id)
    assert 0 <= partition_of(run_id) < partitions
    assert run_id[3:] == job_run_id(batch, custom_id, 1)[3:]


@given(texts, texts, texts, counts)
def test_a_child_lives_with_its_parent(batch: str, custom_id: str, step: str, partitions: int) -> None:
    parent = job_run_id(batch, custom_id, partitions)
    child = child_run_id(parent, step)
    assert partition_of(child) == partition_of(parent)
    assert child != parent
    assert child == child_run_id(parent, step)
    assert child_run_id(parent, step + "x") != child


@given(st.lists(st.text() | st.binary(), max_size=4), st.lists(st.text() | st.binary(), max_size=4))
@example(["ab", "c"], ["a", "bc"])
@example(["a", ""], ["a"])
def test_digests_keep_their_parts_apart(one: list[str | bytes], other: list[str | bytes]) -> None:
    def raw(parts: list[str | bytes]) -> list[bytes]:
        return [part.encode() if isinstance(part, str) else part for part in parts]

    assert (digest(*one) == digest(*other)) == (raw(one) == raw(other))


def test_ids_are_the_same_in_every_release() -> None:
    """They are in stores and in people's notes: a change would make every job twice."""
    assert job_run_id("b", "a", 8) == "01-1f91d011c8f060384823fa97"
    assert child_run_id("00-0123456789abcdef01234567", "b0.1") == "00-4c5df496407b54f411b226ad"


def test_partitions_fill_evenly() -> None:
    filled = Counter(partition_of(job_run_id("b", str(number), 8)) for number in range(8000))
    assert len(filled) == 8
    assert max(filled.values()) < 1.2 * min(filled.values())


@pytest.mark.parametrize(
    "text",
    ["", "0", "00", "run", "00-0123456789abcdef0123456", "00_0123456789abcdef01234567", "+1-0123456789abcdef01234567",
     " 1-0123456789abcdef01234567", "0A-0123456789abcdef01234567", "00-0123456789abcdef01234567\n",
     "00-0123456789abcdefg1234567", "zz-0123456789abcdef01234567"],
)  # fmt: skip
def test_what_is_no_run_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no run id"):
        partition_of(text)


@given(counts)
def test_a_partitions_keys_share_a_slot(partitions: int) -> None:
    keys = Keys("name", partitions)
    assert len(keys.queues) == len(set(keys.queues)) == partitions
    run_id = job_run_id("b", "a", partitions)
    slot = key_slot(keys.queues[partition_of(run_id)].encode())
    partition = partition_of(run_id)
    names = [keys.run(run_id), keys.journal(run_id), keys.of(partition, "counts"), keys.of(partition, "owned:{x}")]
    assert {key_slot(name.encode()) for name in names} == {slot}
    assert len({key_slot(name.encode()) for name in keys.hosts}) == 1
    assert len({key_slot(name.encode()) for name in (keys.deployment, keys.catalog, keys.batches)}) == 1
    assert key_slot(keys.dependencies.encode()) == key_slot(keys.dependency("a").encode())
    assert keys.dependency("names") != keys.dependencies


def test_deployments_on_one_server_have_nothing_in_common() -> None:
    def names(name: str) -> set[str]:
        keys = Keys(name, 4)
        everything = {*keys.queues, *keys.hosts, keys.deployment, keys.catalog, keys.batches, keys.notes}
        everything |= {keys.dependencies, keys.dependency("d"), keys.dependencies_channel}
        return everything | {keys.wake_channel, keys.host_channel("h"), keys.batch_channel("b")}

    assert not names("one") & names("two")
    assert all(key.startswith("one:") for key in names("one"))
