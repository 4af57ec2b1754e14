"""What a deployment publishes of its tools, for whoever decides or explains without having the code."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from actors.contract import Tool

DEPENDS: Final = "depends"


class ToolFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool's declaration, as far as it matters to policies (JSON).

    Attributes:
        risk: its tier, as in ``write``.
        scopes: grants that a job needs for it.
        arguments: its parameters' names, in order.
        needs_approval: ``yes``, ``no``, or ``depends``: on its arguments.
    """

    risk: str
    scopes: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    needs_approval: str = "no"


_ENCODER: Final = msgspec.json.Encoder()
decode_tool_facts: Final = msgspec.json.Decoder(ToolFacts).decode


def facts_of(tool: Tool[Any, Any]) -> ToolFacts:
    """A tool's facts."""
    effect = tool.options.effect
    asks = DEPENDS if callable(effect.needs_approval) else "yes" if effect.needs_approval else "no"
    return ToolFacts(tool.options.risk.name.lower(), effect.scopes, tool.signature.names, asks)


def published(tools: Iterable[Tool[Any, Any]]) -> dict[str, str]:
    """Name → JSON of the facts, as the store keeps them."""
    return {tool.name: _ENCODER.encode(facts_of(tool)).decode() for tool in tools}
