"""Approvals as steps: a call that people have to approve waits, unloaded, until they have, and goes on with their word.

The journal has one entry for it, beside the call's own, at the call's path with ``!approval`` after it: open with the
request while it is waited for, then closed with what people said. The host believes journal and record only by the
signatures in them (:mod:`admission.approval`), each time that it comes to the call again.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import msgspec

from actors.attempts import Outcome
from actors.contract import Tool
from actors.core.outcome import StepEnd
from actors.core.parking import Wait
from actors.errors import ApprovalDenied, RunAborted
from actors.journal import Entry, Kind, Status, decode_error, encode_error
from actors.sanitized import shown_arguments
from actors.schema import canonical_digest
from actors.scope import wake
from actors.verdict import failed, unknown
from admission.approval import Action, ApprovalState, Decision, Request, Terms, Use, approval_id, new_request
from admission.approval_errors import (
    ApprovalExpired,
    ApprovalRefused,
    ApprovalUsed,
    ApprovalVoid,
    Denied,
    ForgedApproval,
)
from admission.approval_rules import Look, Standing, check_request, check_use, decide, judge, verified
from admission.signature import Keyring
from cluster import approvals

if TYPE_CHECKING:
    from actors.engine import RunEngine

SUFFIX: Final = "!approval"
SIMULATED: Final = "simulated approver"


class Proof(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an approval came to: the ``facts`` of its closed entry (JSON). Each part is signed."""

    request: msgspec.Raw
    decisions: tuple[msgspec.Raw, ...] = ()
    use: msgspec.Raw = msgspec.Raw(b"null")


class Granted(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payload of an entry that is closed well (JSON)."""

    approval: str
    approved_by: tuple[str, ...]
    why: str = ""
    simulated: bool = False


class _Said(NamedTuple):
    """The end of the waiting: what people said, as it was written, and its use."""

    standing: Standing
    decisions: tuple[bytes, ...]
    use: bytes


def action_of(
    engine: "RunEngine", path: str, tool: Tool[Any, Any], values: list[Any], business_key: str = ""
) -> Action:
    """The exact action that a call is; advisory arguments are none of it."""
    return Action(
        deployment=engine.services.store.keys.name,
        run=engine.claim.id,
        step=path,
        tool=tool.name,
        agent=engine.agent.name,
        agent_version=engine.agent.version,
        arguments=_bound_arguments(tool, values).hex(),
        business_key=business_key,
        risk=tool.options.risk.name.lower(),
    )


async def approved(
    engine: "RunEngine",
    path: str,
    tool: Tool[Any, Any],
    values: list[Any],
    terms: Terms,
    *,
    rule: str = "",
    business_key: str = "",
) -> str:
    """Returns the approval's id when people have approved this exact call; until then the run waits, unloaded.

    To be called whenever a call that needs approval is not recorded yet; what the journal has is verified again. Where
    its intent is open, :func:`proved` instead, and where the call is recorded, :func:`passed`.

    Args:
        engine: the run.
        path: the call's step.
        tool: what is to be called.
        values: its validated arguments.
        terms: who may decide, how many have to, until when; they hold as they were when it was asked.
        rule: which rule wants it, for people.
        business_key: the agent's own key of the effect.

    Raises:
        ApprovalDenied: somebody said no, nobody said yes in time, or what is there is not what people said;
            ``error_class`` is the name of one of :mod:`admission.approval_errors`. It is recorded: a replay raises it
            again.
    """
    step, keys = path + SUFFIX, engine.services.approval_keys
    action = action_of(engine, path, tool, values, business_key)
    bound = _known_by(tool, values, business_key)
    recorded(engine, path)
    entry = engine.ask(step, Kind.APPROVAL, tool.name, bound)
    if entry is not None and entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise ApprovalDenied(error.error_class, error.message, path, error.end, error.ended_by)
    if entry is not None and entry.status == Status.OK:
        return _proved(engine, path, entry, action)
    if engine.job.simulated:
        # Nothing is caused, so nothing is to be approved: the entry says who has said yes.
        granted = Granted(approval_id(action), (SIMULATED,), simulated=True)
        return await _close(engine, step, tool, bound, engine.services.now_ms(), granted, b"")
    began_ms = engine.services.now_ms() if entry is None else entry.started_ms
    raw = b"" if entry is None else entry.payload
    said = _Said(Standing(ApprovalState.PENDING, ""), (), b"null")
    try:
        if entry is None:
            raw = await _asked(engine, step, tool, values, action, terms, rule, bound)
        request = Request.read(raw, approval_id(action))
        check_request(request, keys, action)
        said = await _awaited(engine, step, request, raw)
    except ApprovalRefused as refusal:
        await _refuse(engine, path, tool, bound, began_ms, refusal, raw, terms)
    proof = Proof(msgspec.Raw(raw), tuple(msgspec.Raw(each) for each in said.decisions), msgspec.Raw(said.use))
    granted = Granted(request.id, said.standing.by, said.standing.why)
    return await _close(engine, step, tool, bound, began_ms, granted, msgspec.json.encode(proof))


def passed(engine: "RunEngine", path: str) -> str:
    """A replay comes to a call that is recorded, and its approval, if it had one, is behind it: the approval's id."""
    entry = None if engine.replay is None else engine.replay.drop(path + SUFFIX)
    if entry is None or entry.status != Status.OK:
        return ""
    return msgspec.json.decode(entry.payload, type=Granted).approval


def proved(engine: "RunEngine", path: str, tool: Tool[Any, Any], values: list[Any], business_key: str = "") -> str:
    """The id of the approval of a call whose intent is open, verified again.

    Where it has none, nobody knows how the intent has come there, and whether it was sent: the run ends as
    ``confirmation_unknown``.
    """
    entry = recorded(engine, path)
    action = action_of(engine, path, tool, values, business_key)
    if entry is None or entry.status != Status.OK:
        text = "its intent is in the journal, and no approval, which it needs"
        engine.abort(unknown(path, tool.name, Outcome(0, error=("Unapproved", text), unknown=True)))
    engine.ask(path + SUFFIX, Kind.APPROVAL, tool.name, _known_by(tool, values, business_key))
    return _proved(engine, path, entry, action)


# The journal


def recorded(engine: "RunEngine", path: str) -> Entry | None:
    """What the journal has of a call's approval that has not been come to yet.

    What is of the run that this one was forked from is void here, and is taken out; but a denial is part of the past.
    """
    step = path + SUFFIX
    there = None if engine.replay is None else engine.replay.recorded(step)
    if there is not None and there.status != Status.FAILED and engine.job.forked_from:
        run = _run_of(there)
        if run and run != engine.claim.id:
            assert engine.replay is not None
            engine.replay.drop(step)
            return None
    return there


def _run_of(entry: Entry) -> str:
    """The run that an entry says that it was asked for; '' where it does not say."""
    try:
        raw = entry.payload if entry.status == Status.OPEN else msgspec.json.decode(entry.facts, type=Proof).request
        return Request.read(bytes(raw), "").action.run
    except (msgspec.DecodeError, ForgedApproval):
        return ""


async def _asked(
    engine: "RunEngine", step: str, tool: Tool[Any, Any], values: list[Any], action: Action, terms: Terms, rule: str,
    bound: bytes,
) -> bytes:  # fmt: skip
    """Records what is asked, before anybody can decide on it."""
    now_ms = engine.services.now_ms()
    request = new_request(
        action,
        terms,
        now_ms,
        shown=msgspec.json.encode(shown_arguments(tool, values)).decode(),
        advisory=tool.options.effect.advisory,
        submitter=engine.job.by,
        tenant=engine.job.tenant,
        rule=rule,
        keys=engine.services.approval_keys,
    )
    raw = request.model_dump_json().encode()
    engine.check_size(f"the request to approve tool {tool.name!r}", raw)
    await engine.record(engine.entry(Kind.APPROVAL, step, tool.name, bound, Status.OPEN, raw, 1, now_ms), 0)
    return raw


async def _close(
    engine: "RunEngine", step: str, tool: Tool[Any, Any], bound: bytes, began_ms: int, granted: Granted, facts: bytes
) -> str:
    payload = msgspec.json.encode(granted)
    await engine.record(
        engine.entry(Kind.APPROVAL, step, tool.name, bound, Status.OK, payload, 1, began_ms, facts)
    )  # fmt: skip
    return granted.approval


async def _refuse(
    engine: "RunEngine",
    path: str,
    tool: Tool[Any, Any],
    bound: bytes,
    began_ms: int,
    refusal: ApprovalRefused,
    raw: bytes,
    terms: Terms,
) -> NoReturn:
    """Records that the call is not made, and why."""
    by = ", ".join(refusal.by)
    if isinstance(refusal, ApprovalExpired):
        by = f"approval.expires_s={terms.expires_s:g}"
    error_class, end = type(refusal).__name__, StepEnd.APPROVAL_DENIED.value
    payload = encode_error(error_class, refusal.why, path, end, by or "the host's verification")
    facts = b"" if not raw else msgspec.json.encode(Proof(msgspec.Raw(raw)))
    step = path + SUFFIX
    await engine.record(
        engine.entry(Kind.APPROVAL, step, tool.name, bound, Status.FAILED, payload, 1, began_ms, facts)
    )  # fmt: skip
    error = decode_error(payload)
    raise ApprovalDenied(error.error_class, error.message, path, error.end, error.ended_by)


def _proved(engine: "RunEngine", path: str, entry: Entry, action: Action) -> str:
    """What a closed entry says, verified: nothing in it counts that no holder of a key has signed.

    An entry that does not hold ends the run: it cannot be taken back, and what was asked cannot be asked twice.
    """
    keys = engine.services.approval_keys
    try:
        granted = msgspec.json.decode(entry.payload, type=Granted)
        if granted.simulated:
            if not engine.job.simulated:
                raise ForgedApproval(granted.approval, "a simulated approver has approved it, in a run that is real")
            return granted.approval
        proof = msgspec.json.decode(entry.facts, type=Proof)
        request = Request.read(bytes(proof.request), granted.approval)
        check_request(request, keys, action)
        decisions = tuple(Decision.read(bytes(each), request.id) for each in proof.decisions)
        use = Use.read(bytes(proof.use), request.id)
        verified(request, decisions, keys)
        check_use(request, use, keys)
        if decide(request, decisions, use.at_ms).state is not ApprovalState.APPROVED:
            raise ForgedApproval(request.id, "its decisions do not approve it")
        return request.id
    except msgspec.DecodeError as error:
        refusal: ApprovalRefused = ForgedApproval(approval_id(action), f"its entry cannot be read: {error}")
    except ApprovalRefused as error:
        refusal = error
    step, end = path + SUFFIX, StepEnd.APPROVAL_DENIED.value
    engine.abort(failed(type(refusal).__name__, str(refusal), step, end, end=end, ended_by="the host's verification"))


def _known_by(tool: Tool[Any, Any], values: list[Any], business_key: str) -> bytes:
    """What a replay knows the approval's step by: not by the run, since a fork has its parent's denials."""
    return canonical_digest([_bound_arguments(tool, values), business_key])


def _bound_arguments(tool: Tool[Any, Any], values: list[Any]) -> bytes:
    """Digest of the arguments that an approval binds."""
    signature, advisory = tool.signature, tool.options.effect.advisory
    named = zip(signature.names, signature.inputs, values, strict=True)
    return canonical_digest({name: value.plain(given) for name, value, given in named if name not in advisory})


# Waiting


async def _awaited(engine: "RunEngine", step: str, request: Request, raw: bytes) -> _Said:
    """Looks, and waits until there is reason to look again; the run may be unloaded meanwhile.

    Raises:
        ApprovalRefused: it comes to nothing.
    """
    loop = asyncio.get_running_loop()
    while True:
        # The wait is there before the look, so that no decision comes between them unheard; and the run is not unloaded
        # while it looks.
        future = loop.create_future()
        engine.active += 1
        engine.waits[step] = (Wait(None, request.expires_ms, "approval", True), future)
        try:
            found = await _looked(engine, request, raw)
            if isinstance(found, _Said):
                engine.waits.pop(step, None)
                return found
        except BaseException:
            engine.waits.pop(step, None)
            raise
        finally:
            engine.active -= 1
            engine.step_over()
        due_ms = engine.services.now_ms() + found
        engine.waits[step] = (Wait(None, due_ms, "approval", True), future)
        timer = loop.call_later(found / 1000, wake, future)
        try:
            await engine.waiting(step, future)
        finally:
            timer.cancel()


async def _looked(engine: "RunEngine", request: Request, raw: bytes) -> _Said | int:
    """What people have said, used; or for how many milliseconds nothing may come of it."""
    claim, store, insist = engine.claim, engine.services.store, engine.services.committer.insist
    keys, tool = engine.services.approval_keys, request.action.tool
    asked = await insist(
        lambda: approvals.ask(
            store, request.id, claim.id, claim.fence, expires_ms=request.expires_ms, tool=tool, request=raw
        )
    )
    _obey(engine, asked.word)
    look = _look(request, asked)
    standing = judge(request, look, keys)
    if standing.state is ApprovalState.USED:
        return _Said(standing, asked.decisions, asked.use)
    if standing.state is ApprovalState.PENDING:
        return max(1, request.expires_ms - asked.now_ms)
    said = await _used(engine, request, keys, asked.now_ms)
    return _Said(standing, asked.decisions, said)


async def _used(engine: "RunEngine", request: Request, keys: Keyring, now_ms: int) -> bytes:
    """Uses what is approved; the use that counts."""
    claim, store = engine.claim, engine.services.store
    use = Use(approval=request.id, action=request.action.digest, at_ms=now_ms).signed(keys)
    raw = use.model_dump_json().encode()
    used = await engine.services.committer.insist(
        lambda: approvals.use(store, request.id, claim.id, claim.fence, raw)
    )  # fmt: skip
    _obey(engine, used.word)
    if used.word == "used":
        check_use(request, Use.read(used.use, request.id), keys)
        return used.use
    if used.word == ApprovalState.EXPIRED:
        raise ApprovalExpired(request.id, "it was approved, and not used before it expired")
    if used.word == "foreign":
        raise ApprovalUsed(request.id, "the store has it as another run's")
    if used.word == ApprovalState.DENIED:
        raise Denied(request.id, "the store says that it was denied meanwhile")
    raise ApprovalVoid(request.id, f"the store says that it is {used.word}")


def _obey(engine: "RunEngine", word: str) -> None:
    if word == "STALE":
        engine.drop()
        raise RunAborted
    if word == "CANCEL":
        engine.request_cancel("cancelled")
        raise RunAborted


def _look(request: Request, asked: approvals.Asked) -> Look:
    """What the store says, as far as it can be read."""
    try:
        state = ApprovalState(asked.word)
    except ValueError:
        raise ForgedApproval(request.id, f"the store says that it is {asked.word!r}, which is no state") from None
    decisions = tuple(Decision.read(each, request.id) for each in asked.decisions)
    use = Use.read(asked.use, request.id) if asked.use else None
    return Look(state, decisions, use, asked.now_ms)
