"""The boundary: values against annotations, canonical bytes and digests of them."""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, get_type_hints

import msgspec
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from actors.errors import DefinitionError, InvalidValue

_PLAIN: Final = frozenset({str, int, bool, float})
_CONFIG: Final = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
_CANONICAL: Final = msgspec.msgpack.Encoder(order="deterministic")


class Value:
    """One annotated value: validates Python and JSON, dumps JSON. Wraps pydantic's compiled core directly."""

    __slots__ = (
        "_dump_python", "_has_sets", "_plain", "_to_json", "_validate_json", "_validate_python", "adapter", "where",
    )  # fmt: skip

    def __init__(self, annotation: Any, where: str) -> None:
        self.where = where
        try:
            self.adapter: TypeAdapter[Any] = _adapter(annotation)
        except Exception as error:
            raise DefinitionError(f"{where}: {annotation!r} cannot be validated: {error}") from error
        self._validate_python = self.adapter.validator.validate_python
        self._validate_json = self.adapter.validator.validate_json
        self._to_json = self.adapter.serializer.to_json
        self._dump_python = self.adapter.serializer.to_python
        self._plain = annotation if annotation in _PLAIN else None
        self._has_sets = self._plain is None and _may_have_sets(self.adapter)

    def check(self, value: Any) -> Any:
        """The validated value.

        Raises:
            InvalidValue: it does not fit; every misfit is named.
        """
        if type(value) is self._plain:
            return value
        try:
            return self._validate_python(value)
        except ValidationError as error:
            raise InvalidValue(f"{self.where}: {_misfits(error)}") from None

    def restore(self, plain: Any) -> Any:
        """The validated value of JSON-like data, read as the JSON that it came from would be read.

        Raises:
            InvalidValue: it does not fit.
        """
        return plain if type(plain) is self._plain else self.load(msgspec.json.encode(plain))

    def load(self, raw: bytes) -> Any:
        """The validated value of JSON."""
        try:
            return self._validate_json(raw)
        except ValidationError as error:
            raise InvalidValue(f"{self.where}: {_misfits(error)}") from None

    def dump(self, value: Any) -> bytes:
        """JSON of a validated value."""
        try:
            return self._to_json(value)
        except Exception as error:  # pydantic raises PydanticSerializationError, and whatever a serializer raises
            raise InvalidValue(f"{self.where}: {type(error).__name__}: {error}") from None

    def plain(self, value: Any) -> Any:
        """The value as JSON-like Python data, for canonical bytes."""
        if self._plain is not None:
            return value
        return _in_order(self._dump_python(value)) if self._has_sets else self._dump_python(value, mode="json")


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        # JSON has neither bytes nor infinities; what is written must be read again as it was.
        return TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError:
        # A model has a configuration of its own.
        return TypeAdapter(annotation)


def _may_have_sets(adapter: TypeAdapter[Any]) -> bool:
    try:
        schema = json.dumps(adapter.json_schema())
    except Exception:
        return True
    return '"uniqueItems": true' in schema


def _in_order(value: Any) -> Any:
    """JSON-like data in which sets have an order: theirs changes from process to process."""
    if isinstance(value, dict):
        return to_jsonable_python({key: _in_order(item) for key, item in value.items()})
    if isinstance(value, set | frozenset):
        return sorted((_in_order(item) for item in value), key=_CANONICAL.encode)
    if isinstance(value, list | tuple):
        return [_in_order(item) for item in value]
    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="strings")


def _misfits(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False, include_input=False)[:20]:
        place = ".".join(str(part) for part in item["loc"]) or "value"
        parts.append(f"{place}: {item['msg']}")
    return "; ".join(parts)


def canonical_digest(value: Any) -> bytes:
    """16 bytes that are the same for equal JSON-like data: maps are sorted before they are hashed."""
    return hashlib.blake2b(_CANONICAL.encode(value), digest_size=16).digest()


class Signature:
    """A function's parameters after the first one (the call or the run), and its result."""

    __slots__ = ("_names", "_signature", "_values", "keywords", "result", "where")

    def __init__(self, function: Callable[..., Any], where: str) -> None:
        self.where = where
        try:
            hints = get_type_hints(function, include_extras=True)
        except NameError as error:
            raise DefinitionError(
                f"{where}: an annotation cannot be resolved: {error}. Import it at run time"
            ) from None
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise DefinitionError(f"{where}: its first parameter must be the call (tools) or the run (agents)")
        for parameter in parameters[1:]:
            if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                raise DefinitionError(f"{where}: *{parameter.name} cannot be recorded; name each parameter")
        self._signature = signature.replace(parameters=parameters[1:])
        self._names = tuple(parameter.name for parameter in parameters[1:])
        self.keywords = tuple(p.name for p in parameters[1:] if p.kind is inspect.Parameter.KEYWORD_ONLY)
        self._values = tuple(Value(hints.get(name, Any), f"{where}, argument {name!r}") for name in self._names)
        self.result = Value(hints.get("return", Any), f"{where}, result")

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return self._names

    @property
    def inputs(self) -> Sequence[Value]:
        """The parameters' values, in order."""
        return self._values

    def dump(self, values: list[Any]) -> bytes:
        """JSON of validated arguments, in order; :meth:`load` reads it again.

        Raises:
            InvalidValue: they cannot be written.
        """
        return b"[" + b",".join(value.dump(given) for value, given in zip(self._values, values, strict=True)) + b"]"

    def load(self, raw: bytes) -> list[Any]:
        """The validated arguments in JSON.

        Raises:
            InvalidValue: they do not fit the signature (any more).
        """
        try:
            parts = msgspec.json.decode(raw, type=list[msgspec.Raw])
        except msgspec.DecodeError as error:
            raise InvalidValue(f"{self.where}: no arguments: {error}") from None
        if len(parts) != len(self._values):
            raise InvalidValue(f"{self.where}: {len(parts)} recorded arguments for {len(self._values)} parameters")
        return [value.load(bytes(part)) for value, part in zip(self._values, parts, strict=True)]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], bytes]:
        """Validated arguments in order, and the digest of their canonical form.

        Raises:
            InvalidValue: they do not fit the signature.
        """
        if kwargs or len(args) != len(self._values):
            try:
                bound = self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise InvalidValue(f"{self.where}: {error}") from None
            bound.apply_defaults()
            args = tuple(bound.arguments[name] for name in self._names)
        values = [value.check(given) for value, given in zip(self._values, args, strict=True)]
        plain = [value.plain(given) for value, given in zip(self._values, values, strict=True)]
        return values, canonical_digest(plain)
