"""Penstock: very many AI agents at once on Ray, each run bounded, resumable, safe to retry and honest.

Names are imported when they are first used: a command that prints its help needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import penstock.own_rooms  # noqa: F401 - looks before any other import from a room

if TYPE_CHECKING:
    from actors.contract import Agent, Tool, ToolCall, agent, tool
    from actors.core.outcome import Risk
    from actors.errors import (
        Ambiguous,
        ApprovalDenied,
        ChildFailed,
        DefinitionError,
        IdempotencyConflict,
        InvalidValue,
        NotApplied,
        NotPermitted,
        PayloadTooLarge,
        PenstockError,
        RateLimited,
        Rejected,
        StepFailed,
        ToolError,
    )
    from actors.job import Job, ValueClass
    from actors.receipts import Applied
    from actors.run import Run
    from admission.dependency import Breaker, Dependency, Limit, RetryBudget
    from admission.retry import RetryPolicy
    from cluster.config import Settings
    from cluster.lifecycle import RunState
    from penstock.client import Client
    from penstock.evals.invariants import invariant
    from penstock.evals.journal import RunJournal, RunStep
    from penstock.sync_client import SyncClient

_HOMES: Final = {
    "Agent": "actors.contract",
    "Tool": "actors.contract",
    "ToolCall": "actors.contract",
    "agent": "actors.contract",
    "tool": "actors.contract",
    "Risk": "actors.core.outcome",
    "Ambiguous": "actors.errors",
    "Applied": "actors.receipts",
    "NotPermitted": "actors.errors",
    "IdempotencyConflict": "actors.errors",
    "ApprovalDenied": "actors.errors",
    "ChildFailed": "actors.errors",
    "DefinitionError": "actors.errors",
    "InvalidValue": "actors.errors",
    "NotApplied": "actors.errors",
    "PayloadTooLarge": "actors.errors",
    "PenstockError": "actors.errors",
    "RateLimited": "actors.errors",
    "Rejected": "actors.errors",
    "StepFailed": "actors.errors",
    "ToolError": "actors.errors",
    "Job": "actors.job",
    "ValueClass": "actors.job",
    "Run": "actors.run",
    "Breaker": "admission.dependency",
    "Dependency": "admission.dependency",
    "Limit": "admission.dependency",
    "RetryBudget": "admission.dependency",
    "RetryPolicy": "admission.retry",
    "Settings": "cluster.config",
    "RunState": "cluster.lifecycle",
    "Client": "penstock.client",
    "invariant": "penstock.evals.invariants",
    "RunJournal": "penstock.evals.journal",
    "RunStep": "penstock.evals.journal",
    "SyncClient": "penstock.sync_client",
}

__all__ = [
    "Agent",
    "Ambiguous",
    "Applied",
    "ApprovalDenied",
    "Breaker",
    "ChildFailed",
    "Client",
    "DefinitionError",
    "Dependency",
    "IdempotencyConflict",
    "InvalidValue",
    "Job",
    "Limit",
    "NotApplied",
    "NotPermitted",
    "PayloadTooLarge",
    "PenstockError",
    "RateLimited",
    "Rejected",
    "RetryBudget",
    "RetryPolicy",
    "Risk",
    "Run",
    "RunJournal",
    "RunState",
    "RunStep",
    "Settings",
    "StepFailed",
    "SyncClient",
    "Tool",
    "ToolCall",
    "ToolError",
    "ValueClass",
    "agent",
    "invariant",
    "tool",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
