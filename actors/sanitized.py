"""Arguments as people are shown them: by name, and without secrets."""

import re
from typing import Any, Final

import msgspec

from actors.contract import Tool
from telemetry.log import redact

MASK: Final = "***"
# What a name ends with when its value is a secret; max_tokens is none.
_SECRET: Final = re.compile(
    r"(?:^|[_\-.])(?:password|passwd|passphrase|pwd|secret|token|api_?key|apikey|access_?key|private_?key|signing_?key"
    r"|authorization|credentials?|cookie)$",
    re.IGNORECASE,
)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def shown_arguments(tool: Tool[Any, Any], values: list[Any]) -> dict[str, Any]:
    """A call's arguments by name, as JSON-like data: what looks like a secret by its name is masked, and so are
    credentials in URLs and what pydantic holds as a secret.
    """
    written = msgspec.json.decode(tool.signature.dump(values))
    return {
        name: _shown(name, value)
        for name, value in zip(tool.signature.names, written, strict=True)
    }  # fmt: skip


def _shown(name: str, value: Any) -> Any:
    if value is not None and _SECRET.search(_CAMEL.sub("_", name)):
        return MASK
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _shown(key, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown("", each) for each in value]
    return value
