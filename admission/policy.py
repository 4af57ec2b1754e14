"""A policy: who may have tools do what, as operators write it. Data; decides nothing."""

import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from admission.conditions import Condition

DEFAULT: Final = "default"
"""The version of the policy that holds where nobody has given one."""
_RULE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LONGEST_S: Final = 366 * 86_400.0


class Permission(StrEnum):
    """What a policy says of a call; each beats those before it."""

    ALLOW = "allow"
    APPROVE = "approve"
    DENY = "deny"


class Tier(StrEnum):
    """Risk tiers of tools, as :class:`actors.core.outcome.Risk` names them."""

    READ = "read"
    DRAFT = "draft"
    WRITE = "write"
    IRREVERSIBLE = "irreversible"

    @property
    def is_effect(self) -> bool:
        """Whether a call of this tier changes the world outside."""
        return self in (Tier.WRITE, Tier.IRREVERSIBLE)


def _listed(value: object) -> object:
    """One name may stand without a list."""
    return (value,) if isinstance(value, str) else value


def _printable(value: object) -> object:
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 256:
        raise ValueError("must be a printable text: put it into quotes")
    return value


def _person(name: str) -> str:
    if name.endswith("*") or name != name.strip():
        raise ValueError("must be somebody's name: approvers are named one by one, without `*` and spaces around")
    return name


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _rule_name(value: object) -> object:
    if not isinstance(value, str) or not _RULE_NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 small letters, digits, dots, dashes or underscores, as in large-refunds")
    return value


_Pattern = Annotated[str, BeforeValidator(_printable)]
Patterns = Annotated[tuple[_Pattern, ...], BeforeValidator(_listed)]
"""Names; one that ends in ``*`` stands for all that begin so."""
_Person = Annotated[str, BeforeValidator(_printable), AfterValidator(_person)]
_Word = Annotated[str, BeforeValidator(_rule_name)]
_Tiers = Annotated[tuple[Tier, ...], BeforeValidator(_listed)]


def covers(pattern: str, name: str) -> bool:
    """Whether a name, or a pattern with a ``*`` at its end, stands for a name."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else pattern == name


def covered(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns stands for a name; where there are none, all names are meant."""
    return not patterns or any(covers(pattern, name) for pattern in patterns)


class Approval(BaseModel):
    """How an approval must be given.

    Attributes:
        approvers: names of those who may give it. Nobody named: anybody.
        needed: how many different people must say yes.
        self_approval: whether whoever submitted the job may be one of them.
        expires_s: seconds until nobody can give it any more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approvers: Annotated[tuple[_Person, ...], BeforeValidator(_listed), AfterValidator(_each_once)] = ()
    needed: int = Field(default=1, ge=1, le=100, strict=True)
    self_approval: StrictBool = True
    expires_s: float = Field(default=86_400.0, gt=0, le=_LONGEST_S, allow_inf_nan=False, strict=True)

    @model_validator(mode="after")
    def _can_be_given(self) -> "Approval":
        if self.approvers and len(self.approvers) < self.needed:
            raise PydanticCustomError(
                "too_few_approvers",
                "{needed} people are needed, and only {named} may approve: name more, or need fewer",
                {"needed": self.needed, "named": len(self.approvers)},
            )
        return self


class Rule(BaseModel):
    """One rule. What it does not name, it does not ask for; all that it names must be so.

    Attributes:
        name: by which decisions name it.
        outcome: what it says: ``allow``, ``approve`` (a person must) or ``deny``.
        tools: names of tools.
        tiers: risk tiers of tools. An ``allow`` reaches irreversible tools only where it names that tier.
        tenants: the job's tenant.
        agents: the agent's name.
        grants: all of these are among the job's grants.
        when: conditions on arguments, by dotted path.
        approval: how the approval must be given, of a rule that asks for one; the rest is as the policy says.
        reason: why, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Word
    outcome: Permission
    tools: Patterns = ()
    tiers: _Tiers = ()
    tenants: Patterns = ()
    agents: Patterns = ()
    grants: Patterns = ()
    when: Mapping[Annotated[str, BeforeValidator(_printable)], Condition] = Field(default_factory=dict)
    approval: Approval | None = None
    reason: str = Field(default="", max_length=1000, strict=True)

    @model_validator(mode="after")
    def _asks_for_what_it_needs(self) -> "Rule":
        if self.approval is not None and self.outcome is not Permission.APPROVE:
            raise PydanticCustomError(
                "no_approval", "approval is for rules with `outcome: approve`: remove one of them"
            )
        for path in self.when:
            if not all(path.split(".")) or path.startswith("*"):
                raise PydanticCustomError(
                    "no_path",
                    "{path} is no path: begin with an argument's name, as in amount_cents, order.total, to.*",
                    {"path": repr(path)},
                )
        return self


class Otherwise(BaseModel):
    """What holds for calls that no rule is about, by tier; effects among them need a grant as well."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: Permission = Permission.ALLOW
    draft: Permission = Permission.ALLOW
    write: Permission = Permission.ALLOW
    irreversible: Permission = Permission.APPROVE

    def of(self, tier: Tier) -> Permission:
        """What holds for a tier."""
        said: Permission = getattr(self, tier.value)
        return said


class Policy(BaseModel):
    """A deployment's policy. Without anything in it: the default policy.

    Attributes:
        rules: their order means nothing but which of several of the same outcome is named.
        otherwise: what holds where no rule says anything.
        approval: how approvals must be given where a rule does not say it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...] = ()
    otherwise: Otherwise = Otherwise()
    approval: Approval = Approval()

    @model_validator(mode="after")
    def _is_sound(self) -> "Policy":
        first: dict[str, int] = {}
        for place, rule in enumerate(self.rules):
            if rule.name in first:
                text = "two rules are named {name}: rename one"
                raise PydanticCustomError(
                    "rule_twice", text, {"name": repr(rule.name), "path": ("rules", place, "name")}
                )
            first[rule.name] = place
            try:
                self._approval_of(rule)
            except ValidationError as error:
                said = {"said": error.errors()[0]["msg"], "path": ("rules", place, "approval")}
                raise PydanticCustomError("approval", "with the policy's own `approval`: {said}", said) from None
        return self

    @cached_property
    def approvals(self) -> Mapping[str, Approval]:
        """How approvals must be given, by the rule that asks for one, with what the policy says in general."""
        return {rule.name: self._approval_of(rule) for rule in self.rules if rule.outcome is Permission.APPROVE}

    def _approval_of(self, rule: Rule) -> Approval:
        if rule.approval is None:
            return self.approval
        said = {field: getattr(rule.approval, field) for field in rule.approval.model_fields_set}
        return Approval(**{**self.approval.model_dump(), **said})

    @cached_property
    def version(self) -> str:
        """12 hex digits of a digest of what it says, or :data:`DEFAULT` where it says nothing."""
        if not self.rules and self.otherwise == Otherwise() and self.approval == Approval():
            return DEFAULT
        said: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
