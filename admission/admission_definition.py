"""What operators say about admission: classes, tenants, bounds. Data; decides nothing.

As in::

    classes:
      critical: {max_wait: 5s}
      best_effort: {max_wait: 1h, share: 0.02}
    tenants:
      acme: {weight: 3, max_running: 200}
      trial: {weight: 0.5, classes: [low, best_effort], max_queued: 1000, cost_per_hour: 2h}
    other_tenants: {max_queued: 10000}
    max_queued: 1000000
    max_queued_bytes: 2GB
    dry_run: true
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from admission.dependency import seconds_of
from admission.values import CLASSES

LONGEST_WAIT_S: Final = 366 * 86_400.0
DEFAULT_MAX_WAIT_S: Final = 86_400.0
LARGEST_SHARE: Final = 0.5
ALL_SHARES: Final = 0.9
_MOST: Final = 10**12
_SIZES: Final = {"B": 1, "KB": 1000, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KB|MB|GB|TB)", re.IGNORECASE)
_CONFIG: Final = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _wait(value: object) -> object:
    seconds = seconds_of(value)
    if seconds > LONGEST_WAIT_S:
        raise ValueError(f"{value!r} is longer than a year: leave it out for the default of 24 h")
    return seconds


def _slot_time(value: object) -> object:
    return None if value is None else seconds_of(value)


def _bytes(value: object) -> object:
    """Bytes of a size: a whole number of them, or a text as in "2GB"."""
    if not isinstance(value, str):
        return value
    matched = _SIZE.fullmatch(value.strip())
    if matched is None:
        raise ValueError(f'{value!r:.60} is no size: give bytes, or a number and B, KB, MB, GB or TB, as in "2GB"')
    return math.floor(float(matched[1]) * _SIZES[matched[2].upper()])


def _name(value: object) -> object:
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 256:
        raise ValueError("a tenant's name must be a printable text of at most 256 characters: put it into quotes")
    return value


def _listed(value: object) -> object:
    """One class may stand without a list."""
    return (value,) if isinstance(value, str) else value


def _number(value: object) -> object:
    """YAML's true is no number, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    return value


ClassName = Literal["critical", "high", "normal", "low", "best_effort"]
_Wait = Annotated[float, BeforeValidator(_wait)]
_SlotTime = Annotated[float, BeforeValidator(_slot_time)]
_Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1, le=10**15, strict=True)]
_Count = Annotated[int, Field(ge=1, le=_MOST, strict=True)]
_Real = Annotated[float, BeforeValidator(_number)]
_Tenant = Annotated[str, BeforeValidator(_name)]


class ClassRule(BaseModel):
    """What holds for the runs of a class.

    Attributes:
        max_wait: how long a run may wait for its first start where its job does not say it: seconds, or a text as in
            ``5s``, ``24h``.
        share: the part of the hosts' slots that the class gets while it has something queued, whatever more valuable
            classes want; from 0 to 0.5.
    """

    model_config = _CONFIG

    max_wait: _Wait = DEFAULT_MAX_WAIT_S
    share: _Real = Field(default=0.0, ge=0, le=LARGEST_SHARE)


class TenantRule(BaseModel):
    """What a tenant may do. Caps are for the whole deployment; what is left out has no cap.

    Attributes:
        weight: its part of each level, relative to the weights of others.
        classes: those that it may submit.
        max_queued: how many of its runs may be queued. The doors of partitions do not ask each other: until the next
            policy, each takes its part and some more (:func:`admission.queue_controller.left_each`).
        max_running: how many of its runs may run at once; never more.
        cost_per_hour: slot time that its runs may take in an hour, as in ``2h`` for two slots on average: when it has
            taken that, it is refused until enough of the hour has passed.
    """

    model_config = _CONFIG

    weight: _Real = Field(default=1.0, ge=0.01, le=100)
    classes: Annotated[tuple[ClassName, ...], BeforeValidator(_listed)] = Field(default=CLASSES, min_length=1)
    max_queued: _Count | None = None
    max_running: _Count | None = None
    cost_per_hour: _SlotTime | None = None

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The classes that it may submit, by rank."""
        return tuple(rank for rank, name in enumerate(CLASSES) if name in self.classes)


class AdmissionDefinition(BaseModel):
    """A deployment's rules for admission. Without anything in it: nothing is bounded, and a run may wait for 24 h.

    Attributes:
        classes: what holds for a class, by its name.
        tenants: what a tenant may do, by its name.
        other_tenants: what each tenant may do that is not named.
        max_queued: how many runs may be queued in the deployment; beyond that the least valuable ones are shed.
        max_queued_bytes: the same for the bytes of their jobs, as in ``2GB``.
        dry_run: everything is accepted and nothing evicted, and what would have been is counted. What has waited for
            its max_wait, or its class's, is shed all the same.
    """

    model_config = _CONFIG

    classes: Mapping[ClassName, ClassRule] = Field(default_factory=dict)
    tenants: Mapping[_Tenant, TenantRule] = Field(default_factory=dict)
    other_tenants: TenantRule = TenantRule()
    max_queued: _Count | None = None
    max_queued_bytes: _Bytes | None = None
    dry_run: StrictBool = False

    @model_validator(mode="after")
    def _shares_leave_something(self) -> "AdmissionDefinition":
        total = sum(rule.share for rule in self.classes.values())
        if total > ALL_SHARES:
            text = "the guaranteed shares of all classes come to {total}: at most {most} can be promised; lower some"
            said = {"total": f"{total:g}", "most": f"{ALL_SHARES:g}", "path": ("classes",)}
            raise PydanticCustomError("shares", text, said)
        return self

    def of_class(self, rank: int) -> ClassRule:
        """What holds for a class."""
        return self.classes.get(_NAMES[rank], _CLASS)

    def of_tenant(self, name: str) -> TenantRule:
        """What a tenant may do."""
        return self.tenants.get(name, self.other_tenants)

    @cached_property
    def version(self) -> str:
        """12 hex digits of a digest of what it says, or ``default`` where it says nothing."""
        said: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        if not said:
            return "default"
        canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


_CLASS: Final = ClassRule()
_NAMES: Final[tuple[ClassName, ...]] = CLASSES
