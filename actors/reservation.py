"""What a call is going to take of its dependency's limits: declared, or learned from this agent's earlier calls."""

import logging
import math
from collections import OrderedDict
from typing import Any, Final

import msgspec
from pydantic_core import to_jsonable_python

from actors.contract import Tool
from admission.dependency import RESOURCES
from admission.estimate import InputEstimator, OutputEstimator

ONE_REQUEST: Final = {"requests": 1.0}
UNKNOWN_OUTPUT_TOKENS: Final = 1024
_MOST_KNOWN: Final = 1000
_ENCODER: Final = msgspec.json.Encoder(enc_hook=to_jsonable_python)
_LOG: Final = logging.getLogger("penstock.tool")


class Reservations:
    """Estimates for one host, by agent and tool; what is not known yet comes from the tool's declaration."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], tuple[InputEstimator, OutputEstimator]] = OrderedDict()

    def cost(self, tool: Tool[Any, Any], agent: str, values: list[Any]) -> dict[str, float]:
        """What to reserve for a call with these arguments.

        Raises:
            ValueError: the tool's own ``reserve`` gave something that is no cost.
        """
        inputs, outputs = self._of(agent, tool.name)
        said = _said(tool, values)
        cost = dict(ONE_REQUEST) | said
        if "input_tokens" not in said and "tokens" not in said:
            cost["input_tokens"] = inputs.estimate(_size_of(values))
        if "output_tokens" not in said and "tokens" not in said:
            cost["output_tokens"] = outputs.estimate(tool.options.max_tokens, UNKNOWN_OUTPUT_TOKENS)
        return cost

    def learn(self, tool: Tool[Any, Any], agent: str, values: list[Any], usage: dict[str, int]) -> None:
        """Takes note of what a call has really used."""
        inputs, outputs = self._of(agent, tool.name)
        if "input_tokens" in usage:
            inputs.observe(_size_of(values), max(0, usage["input_tokens"]))
        if "output_tokens" in usage:
            outputs.observe(max(0, usage["output_tokens"]))

    def _of(self, agent: str, tool: str) -> tuple[InputEstimator, OutputEstimator]:
        key = (agent, tool)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = (InputEstimator(), OutputEstimator())
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return found


def _said(tool: Tool[Any, Any], values: list[Any]) -> dict[str, float]:
    reserve = tool.options.reserve
    if reserve is None:
        return {}
    positional = len(values) - len(tool.signature.keywords)
    keywords = dict(zip(tool.signature.keywords, values[positional:], strict=True))
    said: dict[str, float] = {}
    for name, amount in dict(reserve(*values[:positional], **keywords)).items():
        if name not in RESOURCES or not 0 <= amount < math.inf:
            raise ValueError(
                f"tool {tool.name!r}: reserve gave {name!r}: {amount!r}. Give numbers from zero for any of "
                f"{', '.join(RESOURCES)}"
            )
        said[name] = float(amount)
    return said


def _size_of(values: list[Any]) -> int:
    try:
        return len(_ENCODER.encode(values))
    except (TypeError, ValueError, RecursionError):
        return len(repr(values))
