"""Penstock: very many AI agents at once on Ray, each run bounded, resumable, safe to retry and honest."""

from typing import TYPE_CHECKING, Any

import penstock.own_rooms  # noqa: F401 - before any other import from a room

# isort: split
from actors.contract import Agent, Tool, ToolCall, agent, tool
from actors.core.outcome import Risk
from actors.errors import (
    Ambiguous,
    ChildFailed,
    DefinitionError,
    InvalidValue,
    NotApplied,
    PayloadTooLarge,
    PenstockError,
    Rejected,
    StepFailed,
    ToolError,
)
from actors.job import Job, ValueClass
from actors.run import Run
from admission.retry import RetryPolicy
from cluster.config import Settings
from cluster.lifecycle import RunState

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.sync_client import SyncClient

__all__ = [
    "Agent",
    "Ambiguous",
    "ChildFailed",
    "Client",
    "DefinitionError",
    "InvalidValue",
    "Job",
    "NotApplied",
    "PayloadTooLarge",
    "PenstockError",
    "Rejected",
    "RetryPolicy",
    "Risk",
    "Run",
    "RunState",
    "Settings",
    "StepFailed",
    "SyncClient",
    "Tool",
    "ToolCall",
    "ToolError",
    "ValueClass",
    "agent",
    "tool",
]


def __getattr__(name: str) -> Any:
    # Hosts import this module for the contract alone; the clients' imports are for those who use them.
    if name == "Client":
        from penstock.client import Client

        return Client
    if name == "SyncClient":
        from penstock.sync_client import SyncClient

        return SyncClient
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
