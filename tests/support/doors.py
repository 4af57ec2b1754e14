"""Policies that all partitions of a deployment go by, told as the admission controller tells them."""

import json
from typing import Any

from admission.admission_policy import AdmissionPolicy, ClassPolicy, as_plain
from admission.values import CLASSES
from cluster import admission
from cluster.store import Store

AMPLE = ClassPolicy(pace=1e-4, room=1000.0)
SHUT = ClassPolicy(ahead_ms=60_000, own_ms=60_000, queued=60, pace=1.0, room=1000.0)
"""A minute of waiting, and refused ones may come back a second later."""


async def tell(store: Store, **fields: Any) -> AdmissionPolicy:
    """Has all doors go by a policy from now on; each is newer than the one before."""
    now_ms = await store.server_ms()
    made: dict[str, Any] = {
        "v": now_ms, "at_ms": now_ms, "drain": 1e6, "period_ms": 0, "classes": (AMPLE,) * len(CLASSES),
        "partitions": store.keys.partitions,
    }  # fmt: skip
    policy = AdmissionPolicy(**(made | fields))
    shares = {rank: each.share for rank, each in enumerate(policy.classes)}
    capped = any(each.places >= 0 for each in (*policy.tenants.values(), policy.tenant_default))
    for partition in store.partitions:
        await admission.exchange(
            store, partition, policy.v, json.dumps(as_plain(policy)), shares=shares, capped=capped
        )  # fmt: skip
    return policy


def classes(**by_name: ClassPolicy) -> tuple[ClassPolicy, ...]:
    """Ample ones but those that are named."""
    return tuple(by_name.get(name, AMPLE) for name in CLASSES)
