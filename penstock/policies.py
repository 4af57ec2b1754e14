"""The policy as operators see and change it: who may have tools do what."""

import asyncio
import difflib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from actors.declared import refuse
from actors.job import Job, decode_job
from actors.policy_file import PolicyText, parsed, policy_of
from actors.tool_facts import DEPENDS, ToolFacts, decode_tool_facts
from admission.authority import Action, explain
from cluster import reader
from cluster.config import Settings
from cluster.policies import policy_history, policy_in_force, put_policy
from cluster.store import Store
from penstock.dependencies import operator
from penstock.errors import ClientError, InvalidText, NoSuchRun
from penstock.policy_views import (
    DEFAULT_TEXT,
    PolicyAnswer,
    PolicyExplanation,
    PolicyView,
    checks_of,
    policy_view,
    terms_of,
)

_LONGEST_REASON: Final = 1000


class NoSuchPolicy(ClientError):
    """No policy of this version was in force lately."""

    def __init__(self, version: str, known: list[str]) -> None:
        there_are = ", ".join(dict.fromkeys(known)) if known else "none: nobody has set one"
        super().__init__(f"there is no policy {version!r} in the history; versions: {there_are}")
        self.version = version


class NoSuchTool(ClientError):
    """No host has published a tool of this name."""

    def __init__(self, name: str, known: list[str]) -> None:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        there_are = ", ".join(known) if known else "none: start a deployment with `penstock up --app MODULE`"
        super().__init__(f"there is no tool {name!r}; {meant}known tools: {there_are}")
        self.name = name


class NoSuchArgument(ClientError):
    """A tool has no argument of this name."""

    def __init__(self, tool: str, name: str, known: list[str]) -> None:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"tool {tool!r} has no argument {name!r}; {meant}its arguments: {', '.join(known)}")
        self.name = name


class PolicyCalls:
    """What a client can ask and change of the policy."""

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def policy(self, version: str | None = None) -> PolicyView:
        """The policy in force, or one that was before.

        Args:
            version: of a policy in the history, or how it begins; by default the one in force.

        Raises:
            NoSuchPolicy: there is none of this version, or several begin so.
        """
        if version is None:
            return policy_view(await policy_in_force(self.store))
        history = await self.policy_history()
        found = [each for each in history if each.version.startswith(version)] if version else []
        if len({each.version for each in found}) != 1:
            raise NoSuchPolicy(version, [each.version for each in history])
        return found[0]

    async def policy_history(self) -> list[PolicyView]:
        """The policies that were set lately, the newest, which is in force, first; 50 at most."""
        records = await policy_history(self.store)
        return [policy_view(record, in_force=place == 0) for place, record in enumerate(records)]

    async def set_policy(
        self, text: str, *, place: str = "policy", by: str | None = None, why: str = "", checked: bool = True
    ) -> PolicyAnswer:
        """Puts a policy in force. Hosts obey it as soon as they are told, at the latest at their next heartbeat.

        Args:
            text: YAML, see docs/policy.md; an empty one brings the default policy back.
            place: its name in errors.
            by: who wants it; by default the user and machine.
            why: the reason, for everybody who looks.
            checked: refuse names of tools, arguments and agents that no host has published.

        Raises:
            DefinitionError: it cannot be used; nothing was changed. The text has all that is wrong, with lines.
            InvalidText: the reason is too long.
        """
        if len(why) > _LONGEST_REASON:
            raise InvalidText(f"the reason has {len(why):,} characters, at most {_LONGEST_REASON:,} are kept")
        said = parsed(text, place)
        policy = said.checked()
        unchecked = await self._check_names(said) if checked else "names of tools, arguments and agents"
        who = operator() if by is None else by
        put = await put_policy(self.store, policy.version, text, by=who, why=why)
        view = policy_view(await policy_in_force(self.store))
        return PolicyAnswer(policy=view, changed=put.word == "SET", rules=len(policy.rules), unchecked=unchecked)

    async def explain_policy(
        self,
        job: str | Job,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        policy: str | None = None,
        place: str = "policy",
    ) -> PolicyExplanation:
        """What a policy says of a call, with every rule.

        Args:
            job: a run's id, or a job.
            tool: the tool's name.
            arguments: the call's, by name; JSON-like.
            policy: a text to try, instead of the policy in force.
            place: its name in errors.

        Raises:
            NoSuchRun, NoSuchTool, NoSuchArgument: there is none of that name.
            DefinitionError: the policy cannot be used.
        """
        agent, tenant, grants = await self._asker(job)
        facts = await _tools(self.store)
        if tool not in facts:
            raise NoSuchTool(tool, sorted(facts))
        of = facts[tool]
        for name in arguments:
            if name not in of.arguments:
                raise NoSuchArgument(tool, name, list(of.arguments))
        said = await self._text(policy, place)
        action = Action(tool, of.risk, of.scopes, agent, tenant, arguments, grants, of.needs_approval == "yes")
        explanation = explain(said.checked(), action)
        decision = explanation.decision
        return PolicyExplanation(
            tool=tool,
            risk=of.risk,
            agent=agent,
            tenant=tenant,
            grants=grants,
            version=decision.version,
            outcome=decision.outcome.value,
            rule=decision.rule,
            text=decision.text,
            terms=terms_of(explanation),
            checks=checks_of(explanation),
            notes=_notes(tool, of, arguments),
        )

    async def _check_names(self, said: PolicyText) -> str:
        """Refuses names that nobody has published; what could not be looked at."""
        facts, agents = await asyncio.gather(_tools(self.store), reader.catalog(self.store))
        if not facts:
            return "names of tools, arguments and agents: no host has published any yet"
        misfits = said.misfits(facts, agents)
        if misfits:
            raise refuse("nothing was changed, since the policy does not fit what the hosts serve", misfits)
        return ""

    async def _text(self, policy: str | None, place: str) -> PolicyText:
        if policy is not None:
            return parsed(policy, place)
        record = await policy_in_force(self.store)
        if record is None:
            return parsed(DEFAULT_TEXT, "the default policy")
        return parsed(record.text, f"policy {record.version}")

    async def _asker(self, job: str | Job) -> tuple[str, str, tuple[str, ...]]:
        """The agent, the tenant and the grants."""
        if isinstance(job, Job):
            return job.agent, job.tenant, job.grants
        try:
            record = await reader.record(self.store, job)
        except ValueError:
            raise NoSuchRun(job) from None
        if record is None:
            raise NoSuchRun(job)
        stored = decode_job(record.job)
        return record.agent, stored.tenant, stored.grants


def enforce_given(settings: Settings) -> None:
    """Puts the policy that a deployment was given in force: naming a file at `penstock up` is somebody's decision, and
    takes the place of whatever was in force before. Without one, what was in force stays.

    Raises:
        DefinitionError: it cannot be used.
    """
    given = policy_of(settings)
    if given is None:
        return
    from penstock.sync_client import SyncClient  # which imports this module

    with SyncClient(settings=settings) as client:
        # Its names have been compared with the app, which has published nothing yet.
        client.set_policy(given.text, place=given.place, why="given to the deployment", checked=False)


async def _tools(store: Store) -> dict[str, ToolFacts]:
    found: dict[str, ToolFacts] = {}
    for name, text in (await store.fields(store.keys.tools)).items():
        try:
            found[name] = decode_tool_facts(text)
        except msgspec.DecodeError:
            continue  # published by a host of another version
    return found


def _notes(tool: str, facts: ToolFacts, arguments: Mapping[str, Any]) -> list[str]:
    notes: list[str] = []
    if facts.needs_approval == DEPENDS:
        notes.append(f"whether tool {tool!r} itself needs an approval depends on its arguments; that is not known here")
    missing = [name for name in facts.arguments if name not in arguments]
    if missing:
        notes.append(f"not given: {', '.join(missing)}; a real call has them, or their defaults")
    return notes
