"""A host's half of the policy: held in memory, asked for every call, refreshed when another one is put in force."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from actors.contract import Tool
from actors.errors import described
from actors.job import JobRecord
from actors.policy_file import parsed, policy_of
from actors.tool_facts import facts_of, published
from admission.authority import UNREADABLE, Decision, Plan, Subject
from admission.policy import DEFAULT, Permission, Policy
from cluster.config import Settings
from cluster.errors import StoreError
from cluster.policies import PolicyRecord, policy_in_force, policy_number, put_policy
from cluster.store import Store

_MOST_PLANS: Final = 4096
_LOG: Final = logging.getLogger("penstock.authority")


class Authority:
    """Decides about calls without any I/O; :meth:`refresh` is told whenever the policy may have changed.

    A host that cannot read the policy in force permits nothing.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._refreshing = asyncio.Lock()
        self._number = 0
        self._policy: Policy | None = Policy()
        self._denied: Decision | None = None
        self._plans: dict[tuple[Tool[Any, Any], str, str, tuple[str, ...], bool], Plan] = {}

    @property
    def version(self) -> str:
        """The version of the policy that this host obeys."""
        return self._policy.version if self._policy is not None else self._denied.version if self._denied else DEFAULT

    async def open(self, tools: Iterable[Tool[Any, Any]]) -> None:
        """Publishes what the tools are, brings the policy that this host was given where the deployment has none yet,
        and reads the one in force.

        Raises:
            DefinitionError: the policy that this host was given cannot be used.
        """
        facts = published(tools)
        if facts:
            await self._store.set_fields(self._store.keys.tools, facts)
        given = policy_of(self._settings)
        if given is not None:
            version = given.checked().version
            await put_policy(self._store, version, given.text, by="deployment", only_first=True)
        await self.refresh()

    async def refresh(self) -> None:
        """Looks whether another policy is in force, and obeys it from now on."""
        async with self._refreshing:
            if await policy_number(self._store) == self._number:
                return
            record = await policy_in_force(self._store)
            if record is not None:
                self._obey(record)

    async def told(self) -> None:
        """The same where somebody has said so; when the store is away, the next heartbeat does it."""
        try:
            await self.refresh()
        except StoreError as error:
            _LOG.warning("the policy cannot be read just now: %s", error)

    def decide(self, tool: Tool[Any, Any], values: list[Any], *, job: JobRecord, agent: str) -> Decision:
        """What is permitted of a call. No I/O, and no exception whatever the arguments are.

        Args:
            tool: the tool.
            values: the call's validated arguments, in order.
            job: the run's job: its tenant and its grants.
            agent: the agent's name.
        """
        asks = asks_approval(tool, values)
        key = (tool, job.tenant, agent, job.grants, asks)
        plan = self._plans.get(key)
        if plan is not None and plan.fixed is not None:
            return plan.fixed
        if self._policy is None:
            assert self._denied is not None
            return self._denied
        if plan is None:
            plan = self._planned(key, self._policy)
        return plan.fixed or plan.decide(_arguments(tool, values))

    def _planned(self, key: tuple[Tool[Any, Any], str, str, tuple[str, ...], bool], policy: Policy) -> Plan:
        tool, tenant, agent, grants, asks = key
        facts = facts_of(tool)
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        plan = self._plans[key] = Plan(
            policy, Subject(tool.name, facts.risk, facts.scopes, agent, tenant, grants, asks)
        )  # fmt: skip
        return plan

    def _obey(self, record: PolicyRecord) -> None:
        said = parsed(record.text, f"policy {record.version}")
        self._plans.clear()
        self._number, self._policy = record.number, said.policy
        if said.policy is not None:
            _LOG.info("policy %s, set by %s, is obeyed from now on", record.version, record.by)
            return
        why = "; ".join(said.problems)
        _LOG.error("policy %s cannot be read here, so nothing is permitted: %s", record.version, why)
        text = (
            f"this host cannot read the policy in force ({record.version}), so it permits nothing: bring it up to "
            "date, or put a policy in force that it can read (penstock policy set FILE)"
        )
        self._denied = Decision(Permission.DENY, UNREADABLE, record.version, text)


def asks_approval(tool: Tool[Any, Any], values: list[Any]) -> bool:
    """Whether the tool itself wants an approval of this call; where its function fails, it does."""
    needs: Any = tool.options.effect.needs_approval
    if isinstance(needs, bool):
        return needs
    positional = len(values) - len(tool.signature.keywords)
    named = dict(zip(tool.signature.keywords, values[positional:], strict=True))
    try:
        return bool(needs(*values[:positional], **named))
    except Exception as error:
        _LOG.warning("needs_approval of tool %s failed, so it needs one: %s", tool.name, described(error)[0])
        return True


def _arguments(tool: Tool[Any, Any], values: list[Any]) -> dict[str, Any]:
    """The arguments as conditions see them: JSON-like, by name. Where they cannot be written, there are none, and what
    cannot be told is not permitted.
    """
    try:
        plain: list[Any] = msgspec.json.decode(tool.signature.dump(values))
    except Exception as error:
        _LOG.warning("arguments of tool %s cannot be written: %s", tool.name, described(error)[0])
        return {}
    return dict(zip(tool.signature.names, plain, strict=True))
