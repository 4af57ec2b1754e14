"""Names of keys and channels, and which partition a run lives in.

A run id begins with its partition (two hex digits), so that whoever has the id knows the slot. The rest is a digest
of (deployment, batch, custom id): submitting the same job again gives the same id. A child run shares its parent's
partition, so that ending the child and waking the parent is one script call.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

_RUN_ID: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{24}")
_APPROVAL_ID: Final = re.compile(r"a[0-9a-f]{2}-[0-9a-f]{24}")


def digest(*parts: bytes | str) -> str:
    """24 hex digits (96 bits) of a length-prefixed BLAKE2b over ``parts``."""
    state = hashlib.blake2b(digest_size=12)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "big"))
        state.update(raw)
    return state.hexdigest()


def job_run_id(batch: str, custom_id: str, partitions: int) -> str:
    """The id of the run that (batch, custom_id) always gets."""
    unique = digest(batch, custom_id)
    return f"{int(unique[:8], 16) % partitions:02x}-{unique}"


def child_run_id(parent: str, step: str) -> str:
    """The id of the run that a parent's step spawns: in the parent's partition, the same at every replay."""
    return f"{parent[:2]}-{digest(parent, step)}"


def fork_run_id(source: str, key: str) -> str:
    """The id of a fork: in its source's partition, the same whenever it is asked for under the same key."""
    return f"{source[:2]}-{digest(source, 'fork', key)}"


def lineage_root(lineage: str) -> str:
    """The run from which everything of a lineage descends; a lineage is its id and the steps of its child runs."""
    return lineage.partition("/")[0]


def effect_identity(tenant: str, *parts: str) -> str:
    """What an effect is one and the same by, inside its tenant: a business key, or a lineage's root, step and tool."""
    return digest(f"tenant:{tenant}", *parts)


def partition_of(run_id: str) -> int:
    """The partition that a run id names.

    Raises:
        ValueError: the text is no run id.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is no run id: expected two hex digits, a dash and 24 hex digits")
    return int(run_id[:2], 16)


def partition_of_approval(approval_id: str) -> int:
    """The partition that an approval's id names: its run's.

    Raises:
        ValueError: the text is no approval's id.
    """
    if not _APPROVAL_ID.fullmatch(approval_id):
        raise ValueError(
            f"{approval_id!r} is no approval's id: expected an a, two hex digits, a dash and 24 hex digits"
        )
    return int(approval_id[1:3], 16)


@dataclass(frozen=True)
class Keys:
    """All keys of one deployment. ``name`` keeps deployments that share a server apart."""

    name: str
    partitions: int

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """The queue key of every partition; scripts derive all other keys of the partition from it."""
        return tuple(self.of(partition, "queue") for partition in range(self.partitions))

    def of(self, partition: int, what: str) -> str:
        """A key of one partition: queue, counts, ended:STATE, waiting, unserved, timers, run:ID, journal:ID …"""
        return f"{self.name}:{{p{partition:02x}}}:{what}"

    def run(self, run_id: str) -> str:
        """The run's record (hash)."""
        return self.of(partition_of(run_id), f"run:{run_id}")

    def journal(self, run_id: str) -> str:
        """The run's journal (list)."""
        return self.of(partition_of(run_id), f"journal:{run_id}")

    def archive(self, run_id: str) -> str:
        """What checkpoints have taken out of the run's journal (list); only for runs with effects."""
        return self.of(partition_of(run_id), f"archive:{run_id}")

    def children(self, run_id: str) -> str:
        """The run's child runs (set)."""
        return self.of(partition_of(run_id), f"children:{run_id}")

    def branches(self, root: str) -> str:
        """A root and all forks below it (set); only where there are forks."""
        return self.of(partition_of(root), f"branches:{root}")

    def promotions(self, root: str) -> str:
        """Which branch of a root's lineages was promoted, when, by whom and why (list of JSON)."""
        return self.of(partition_of(root), f"promotions:{root}")

    @property
    def hosts(self) -> tuple[str, str, str]:
        """Leases, infos and draining marks of hosts: three keys of one slot."""
        return tuple(f"{self.name}:{{hosts}}:{part}" for part in ("leases", "info", "draining"))  # type: ignore[return-value]

    @property
    def loads(self) -> str:
        """What hosts said of their load with the last heartbeat: host → JSON (hash), in the slot of ``hosts``."""
        return f"{self.name}:{{hosts}}:loads"

    @property
    def admission(self) -> str:
        """What the admission controller said last (``state``), its epoch, and what operators have set (hash)."""
        return f"{self.name}:{{deployment}}:admission"

    @property
    def deployment(self) -> str:
        """What all processes of the deployment must agree on (hash)."""
        return f"{self.name}:{{deployment}}:facts"

    @property
    def catalog(self) -> str:
        """Agents that hosts serve: name → JSON with version and input schema (hash)."""
        return f"{self.name}:{{deployment}}:catalog"

    @property
    def uses(self) -> str:
        """Which agents' calls go to which dependencies: both names, a line each → when that was last said (hash)."""
        return f"{self.name}:{{deployment}}:uses"

    @property
    def tools(self) -> str:
        """Tools of the apps that hosts serve: name → JSON with risk, scopes and arguments (hash)."""
        return f"{self.name}:{{deployment}}:tools"

    @property
    def policy(self) -> str:
        """The policy in force (hash)."""
        return f"{self.name}:{{deployment}}:policy"

    @property
    def policy_history(self) -> str:
        """Policies that are or were in force, the newest first, as JSON (list)."""
        return f"{self.name}:{{deployment}}:policies"

    @property
    def policy_channel(self) -> str:
        """Told a number whenever another policy is put in force."""
        return f"{self.name}:policy"

    @property
    def admission_rules(self) -> str:
        """The operators' rules for admission that are in force (hash)."""
        return f"{self.name}:{{deployment}}:admission_rules"

    @property
    def admission_rules_history(self) -> str:
        """Rules for admission that are or were in force, the newest first, as JSON (list)."""
        return f"{self.name}:{{deployment}}:admission_rules_history"

    @property
    def admission_channel(self) -> str:
        """Told a number whenever other rules for admission are put in force."""
        return f"{self.name}:admission"

    @property
    def batches(self) -> str:
        """Batch ids by time of their first submission (sorted set)."""
        return f"{self.name}:{{deployment}}:batches"

    @property
    def notes(self) -> str:
        """What watchdogs say of runs: run id → JSON (hash), advisory."""
        return f"{self.name}:{{hosts}}:notes"

    def effect(self, identity: str) -> str:
        """The record of one effect (hash), in a slot of its own; ``identity`` is a digest (:func:`effect_identity`)."""
        return f"{self.name}:{{effect:{identity}}}"

    @property
    def dependencies(self) -> str:
        """Names of the dependencies that have, or had, a hub (set)."""
        return f"{self.name}:{{deps}}:names"

    def dependency(self, name: str) -> str:
        """What a dependency's hub last said, and what operators want of it (hash)."""
        return f"{self.name}:{{deps}}:dependency:{name}"

    @property
    def dependencies_channel(self) -> str:
        """Told ``changed NAME`` when operators want something of a hub, and ``news NAME`` when a hub has news."""
        return f"{self.name}:deps"

    def waits(self, host: str) -> str:
        """What runs on a host wait for in its memory: run id → JSON (hash), advisory, gone soon after the host."""
        return f"{self.name}:{{hosts}}:waits:{host}"

    def approval(self, approval_id: str) -> str:
        """The record of one approval (hash), in its run's partition."""
        return self.of(partition_of_approval(approval_id), f"approval:{approval_id}")

    @property
    def approvals_channel(self) -> str:
        """Told ``STATE APPROVAL`` whenever an approval is asked for, or somebody has decided on one."""
        return f"{self.name}:approvals"

    @property
    def wake_channel(self) -> str:
        """Told ``PARTITION LEVEL`` (two hex digits, the best level of what was queued) whenever something was put into
        a partition's queue.
        """
        return f"{self.name}:wake"

    def host_channel(self, host: str) -> str:
        """Told ``cancel RUN``, ``child RUN`` and ``drain`` for one host."""
        return f"{self.name}:host:{host}"

    def batch_channel(self, batch: str) -> str:
        """Told a number of runs whenever runs of the batch have ended, or become ``confirmation_unknown``."""
        return f"{self.name}:batch:{batch}"
