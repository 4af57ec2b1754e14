"""Conditions on a tool call's arguments: small, typed, and with a third answer where there is none. Pure.

A comparison that makes no sense (an argument that is not there, text with a number) is neither true nor false but
*unknown*, as in Kleene's strong three-valued logic (S. C. Kleene, Introduction to Metamathematics, 1952, section 64):
false wins a conjunction over unknown, and true a disjunction. What an unknown answer means is for the rule to say: a
rule that forbids takes it for true, a rule that allows for false, so that a mistake never permits anything.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

EVERY: Final = "*"
"""The part of a path that stands for every element of a list."""
_LONGEST_NUMBER: Final = 64
_LARGEST: Final = 2**63


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
"""What there is at a path that leads nowhere."""


def _scalar(value: object) -> object:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _LARGEST:
        return value
    raise ValueError("must be text, a number, true, false or null (dates go into quotes)")


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return _scalar(value)


def _several(value: object) -> object:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of values, as in [EUR, CHF]")
    return tuple(_scalar(each) for each in value)


def _text(value: object) -> object:
    if not isinstance(value, str) or not value:
        raise ValueError("must be text: put it into quotes")
    return value


_Scalar = Annotated[Any, BeforeValidator(_scalar)]
_Number = Annotated[Any, BeforeValidator(_number)]
_Several = Annotated[Any, BeforeValidator(_several)]
_Text = Annotated[Any, BeforeValidator(_text)]


class Condition(BaseModel):
    """What one argument must be; all that is given must hold.

    Attributes:
        eq: equal to a text, a number, true, false or null.
        ne: not equal to it.
        lt: a number below; a text that is a number counts as one, since exact amounts are written so in JSON.
        le: a number below, or the same.
        gt: a number above.
        ge: a number above, or the same.
        in_: (``in``) one of several.
        not_in: none of several.
        prefix: a text that begins so, letter by letter.
        suffix: a text that ends so.
        present: true: it is there and not null; false: it is not there, or null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    eq: _Scalar = None
    ne: _Scalar = None
    lt: _Number = None
    le: _Number = None
    gt: _Number = None
    ge: _Number = None
    in_: _Several = Field(default=None, alias="in")
    not_in: _Several = None
    prefix: _Text = None
    suffix: _Text = None
    present: StrictBool | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Condition":
        if not self.model_fields_set:
            raise ValueError(f"says nothing: give at least one of {', '.join(OPERATORS)}")
        return self

    @cached_property
    def wanted(self) -> tuple[tuple[str, Any], ...]:
        """Operators and what they compare with, in the order of their declaration."""
        names = ((name, "in" if name == "in_" else name) for name in type(self).model_fields)
        return tuple((word, getattr(self, name)) for name, word in names if name in self.model_fields_set)

    def holds(self, value: Any) -> bool | None:
        """Whether a value is as wanted; None: nobody can tell. Never raises on JSON-like data."""
        answer: bool | None = True
        for operator, operand in self.wanted:
            said = OPERATORS[operator](value, operand)
            if said is False:
                return False
            answer = said if answer is True else None
        return answer

    def __str__(self) -> str:
        return " and ".join(f"{operator} {operand!r}" for operator, operand in self.wanted)


def answer(conditions: Mapping[str, Condition], arguments: Mapping[str, Any], *, all_elements: bool) -> bool | None:
    """Whether all conditions hold; None: nobody can tell.

    Args:
        conditions: by the dotted path of what they are about; ``*`` is every element of a list.
        arguments: a call's arguments by name, JSON-like.
        all_elements: where a path leads to several values, the condition must hold for all of them (a rule that
            allows), or for any (a rule that forbids).
    """
    whole: bool | None = True
    for path, condition in conditions.items():
        said = weighed(path, condition, arguments, all_elements=all_elements)
        if said is False:
            return False
        whole = said if whole is True else None
    return whole


def weighed(path: str, condition: Condition, arguments: Mapping[str, Any], *, all_elements: bool) -> bool | None:
    """The same for one condition."""
    if path in arguments:  # one of the arguments themselves: the usual case
        return condition.holds(arguments[path])
    answers = {condition.holds(value) for value in at(path, arguments)}
    decisive = not all_elements
    if decisive in answers:
        return decisive
    return None if None in answers else all_elements


def at(path: str, arguments: Mapping[str, Any]) -> Iterable[Any]:
    """What is at a path: one value, or :data:`ABSENT`, or one for each element of a list."""
    found: Iterable[Any] = (arguments,)
    for part in path.split("."):
        found = _elements(found) if part == EVERY else _members(found, part)
    return found


def _elements(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield ABSENT


def _members(values: Iterable[Any], name: str) -> Iterator[Any]:
    for value in values:
        yield value.get(name, ABSENT) if isinstance(value, Mapping) else ABSENT


def _equal(value: Any, wanted: Any) -> bool | None:
    if value is None or wanted is None:
        return None if value is ABSENT else value is wanted
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted if isinstance(value, bool) and isinstance(wanted, bool) else None
    if isinstance(value, str) or isinstance(wanted, str):
        return value == wanted if isinstance(value, str) and isinstance(wanted, str) else None
    return bool(value == wanted) if isinstance(value, int | float) and value == value else None


def _one_of(value: Any, wanted: tuple[Any, ...]) -> bool | None:
    answers = [_equal(value, each) for each in wanted if each is not None]
    if True in answers or (value is None and None in wanted):
        return True
    if value is ABSENT:
        return None
    # Unknown only where it can be compared with none of them: a list may have values of several types.
    return False if False in answers or not answers else None


def _negated(said: bool | None) -> bool | None:
    return None if said is None else not said


def _compared(value: Any, wanted: float, holds: Callable[[Any, Any], bool]) -> bool | None:
    if isinstance(value, str):
        return _compared_text(value, wanted, holds)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return bool(holds(value, wanted))


def _compared_text(value: str, wanted: float, holds: Callable[[Any, Any], bool]) -> bool | None:
    if len(value) > _LONGEST_NUMBER:
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return None if number.is_nan() else bool(holds(number, Decimal(str(wanted))))


def _begins(value: Any, wanted: str) -> bool | None:
    return value.startswith(wanted) if isinstance(value, str) else None


def _ends(value: Any, wanted: str) -> bool | None:
    return value.endswith(wanted) if isinstance(value, str) else None


OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool | None]]] = {
    "eq": _equal,
    "ne": lambda value, wanted: _negated(_equal(value, wanted)),
    "lt": lambda value, wanted: _compared(value, wanted, lambda one, other: one < other),
    "le": lambda value, wanted: _compared(value, wanted, lambda one, other: one <= other),
    "gt": lambda value, wanted: _compared(value, wanted, lambda one, other: one > other),
    "ge": lambda value, wanted: _compared(value, wanted, lambda one, other: one >= other),
    "in": _one_of,
    "not_in": lambda value, wanted: _negated(_one_of(value, wanted)),
    "prefix": _begins,
    "suffix": _ends,
    "present": lambda value, wanted: (value is not None and value is not ABSENT) is wanted,
}
"""What a condition can ask of a value, by its name: true, false, or None where it makes no sense."""
