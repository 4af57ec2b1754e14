"""What a run's output is expected to be. Pure."""

from collections.abc import Sequence
from typing import Any, Final, Self

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from actors.schema import canonical_digest

_LONGEST: Final = 200


class Expectation(BaseModel):
    """What a run's output must be, besides that the run succeeded: all that is named holds.

    ``equals`` is the output itself; ``contains`` is a part of it: what is named in objects is there and fits, lists
    have the same length and fit item by item; ``matches`` is a JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    equals: JsonValue = Field(default=None)
    contains: JsonValue = Field(default=None)
    matches: dict[str, Any] | None = None

    @field_validator("matches")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            try:
                jsonschema_rs.validator_for(schema)
            except Exception as error:
                raise ValueError(f"no JSON schema: {error}") from None
        return schema

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("says nothing: give equals, contains or matches")
        return self

    def misfits(self, output: Any) -> list[str]:
        """What of the output is not as expected."""
        found: list[str] = []
        if "equals" in self.model_fields_set and not _same(self.equals, output):
            found.append(f"output: expected {_short(self.equals)}, it is {_short(output)}")
        if "contains" in self.model_fields_set:
            found += _missing(self.contains, output, "output")
        if self.matches is not None:
            validator = jsonschema_rs.validator_for(self.matches)
            found += [
                f"output{''.join(f'.{part}' for part in error.instance_path)}: {error.message}"[:_LONGEST]
                for error in validator.iter_errors(output)
            ]
        return found


def part_of(value: Any, path: str) -> Any:
    """What stands at a path such as ``refund.lines.0.cents``; None where nothing does."""
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _missing(wanted: Any, found: Any, where: str) -> list[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            text
            for name, value in wanted.items()
            for text in (
                _missing(value, found[name], f"{where}.{name}") if name in found else [f"{where}.{name}: is missing"]
            )
        ]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [
            text for place, value in enumerate(wanted) for text in _missing(value, found[place], f"{where}.{place}")
        ]
    return [] if _same(wanted, found) else [f"{where}: expected {_short(wanted)}, it is {_short(found)}"]


def _same(one: Any, other: Any) -> bool:
    # Numbers are JSON's: 1 and 1.0 are the same, and neither is true.
    return canonical_digest(_numbers(one)) == canonical_digest(_numbers(other))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
