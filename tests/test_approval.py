"""Approvals without I/O: what is signed, who may, what follows. Laws over everything that people could say."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from approvers import FORGED, KEYS, OTHER, OTHERS, SECRET, a_request, an_action, plain, said
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from actors.approval_keys import keyring
from admission.approval import Action, ApprovalState, Decision, Request, Terms, Use, approval_id, who_may
from admission.approval_errors import (
    ActionChanged,
    AlreadyApproved,
    AlreadyDenied,
    ApprovalExpired,
    ApprovalRefused,
    ApprovalUsed,
    ApprovalVoid,
    DecisionReplayed,
    Denied,
    ForgedApproval,
    NoApprovalKeys,
    NotAnApprover,
    RunIsOver,
    SelfApproval,
    UnknownApprovalKey,
)
from admission.approval_rules import Look, check_open, check_request, check_use, decide, judge, verified
from admission.signature import Keyring, canonical

S = ApprovalState
NAMES = st.sampled_from(["ann", "bob", "cid", "sam"])
TERMS = st.builds(
    Terms,
    needed=st.integers(1, 3),
    approvers=st.sampled_from([(), ("ann", "bob", "cid")]),
    self_approval=st.booleans(),
    expires_s=st.just(10.0),
)
SAID = st.lists(st.tuples(NAMES, st.booleans(), st.integers(1_000_000, 1_012_000)), max_size=5)
PARTS = st.lists(st.one_of(st.text(max_size=6), st.integers(-9, 9), st.booleans()), max_size=4)


def all_said(request: Request, words: list[tuple[str, bool, int]]) -> list[Decision]:
    return [said(request, name, yes=yes, at_ms=at_ms) for name, yes, at_ms in words]


def look(*decisions: Decision, state: S = S.PENDING, now_ms: int = 1_001_000, use: Use | None = None) -> Look:
    return Look(state, decisions, use, now_ms)


# What is signed


@given(PARTS, PARTS)
def test_no_two_different_things_have_the_same_bytes(one: list[Any], other: list[Any]) -> None:
    same = one == other and [type(part) for part in one] == [type(part) for part in other]
    assert (canonical(*one) == canonical(*other)) == same


@given(st.sampled_from(sorted(Action.model_fields)), st.text(min_size=1, max_size=8))
def test_each_part_of_an_action_changes_what_it_is_bound_to(field: str, value: str) -> None:
    action, other = an_action(), an_action(**{field: value})
    assert (action.digest == other.digest) == (action == other)
    assert (approval_id(action) == approval_id(other)) == (action == other)


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, "zoe"]
    return value


@pytest.mark.parametrize("field", [name for name in Decision.model_fields if name not in ("key", "signature")])
def test_a_changed_field_of_a_decision_is_seen(field: str) -> None:
    decision = said(a_request())
    decision.check_signature(KEYS, "a")
    forged = Decision(**(plain(decision) | {field: changed(plain(decision)[field])}))
    with pytest.raises(ForgedApproval):
        forged.check_signature(KEYS, "a")


REQUEST_FIELDS = [name for name in Request.model_fields if name not in ("key", "signature", "action", "terms")]


@pytest.mark.parametrize("field", [*REQUEST_FIELDS, *(f"terms.{name}" for name in Terms.model_fields), "action.tool"])
def test_a_changed_field_of_a_request_is_seen(field: str) -> None:
    raw = plain(a_request(Terms(needed=1, approvers=("ann", "bob"))))
    place = raw
    *path, last = field.split(".")
    for part in path:
        place = place[part]
    place[last] = changed(place[last])
    with pytest.raises(ForgedApproval):
        check_request(Request(**raw), KEYS)


@given(st.text(alphabet="0123456789abcdef", min_size=64, max_size=64))
def test_no_other_signature_holds(signature: str) -> None:
    decision = said(a_request())
    if signature != decision.signature:
        with pytest.raises(ForgedApproval):
            decision.model_copy(update={"signature": signature}).check_signature(KEYS, "a")


def test_a_signature_of_one_kind_of_record_is_none_of_another() -> None:
    request = a_request()
    use = Use(approval=request.id, action=request.action.digest, at_ms=1).signed(KEYS)
    other = Use(**use.model_dump())
    other.check_signature(KEYS, "a")
    borrowed = said(request).model_copy(update={"key": use.key, "signature": use.signature})
    with pytest.raises(ForgedApproval):
        borrowed.check_signature(KEYS, "a")


def test_keys_are_rotated_by_name() -> None:
    request = a_request()
    both = Keyring.parse(f"{OTHER},{SECRET}")
    assert said(request, keys=both).key == "k2"
    for keys in (KEYS, OTHERS):
        said(request, keys=keys).check_signature(both, request.id)
    with pytest.raises(UnknownApprovalKey, match="k2"):
        said(request, keys=OTHERS).check_signature(KEYS, request.id)
    with pytest.raises(ForgedApproval):
        said(request, keys=FORGED).check_signature(KEYS, request.id)
    with pytest.raises(NoApprovalKeys):
        said(request).check_signature(Keyring({}), request.id)
    with pytest.raises(NoApprovalKeys, match="PENSTOCK_APPROVAL_KEYS"):
        said(request, keys=Keyring({}))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("secretsecret", "write id:base64"),
        (":c2VjcmV0", "write id:base64"),
        ("k1:%%%secret", "no base64"),
        ("k1:c2VjcmV0", "6 bytes"),
        (f"{SECRET},{SECRET}", "twice"),
    ],
)
def test_what_is_wrong_with_a_key_is_said_and_nothing_of_the_key(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        keyring(SecretStr(text))
    assert "PENSTOCK_APPROVAL_KEYS" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_a_keyring_shows_names_only() -> None:
    assert repr(Keyring.parse(f"{SECRET}\n{OTHER}")) == "<keys k1, k2>"
    assert not keyring(None)
    secret = base64.b64decode(SECRET.partition(":")[2])
    assert secret.decode() not in repr(KEYS)


@pytest.mark.parametrize(
    "fields",
    [
        {"needed": 0},
        {"needed": 3, "approvers": ("ann", "bob")},
        {"needed": 2, "approvers": ("ann", "ann")},
        {"approvers": (" ann",)},
        {"approvers": ("a\nb",)},
        {"expires_s": 0},
        {"expires_s": float("inf")},
    ],
)
def test_terms_that_nobody_can_fulfil_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Terms(**fields)


# What follows


@given(TERMS, SAID, st.integers(1_000_000, 1_015_000), st.randoms())
def test_the_order_of_decisions_does_not_matter(
    terms: Terms, words: list[tuple[str, bool, int]], now_ms: int, chance: Any
) -> None:
    request = a_request(terms)
    decisions = all_said(request, words)
    shuffled = list(decisions)
    chance.shuffle(shuffled)
    assert decide(request, decisions, now_ms).state is decide(request, shuffled, now_ms).state


@given(TERMS, SAID, st.integers(1_000_000, 1_015_000))
def test_approved_means_enough_people_in_time_and_nobody_against(
    terms: Terms, words: list[tuple[str, bool, int]], now_ms: int
) -> None:
    request = a_request(terms)
    standing = decide(request, all_said(request, words), now_ms)
    enough = len({name for name, _, _ in words}) >= terms.needed
    against = not all(yes for _, yes, _ in words)
    assert (standing.state is S.APPROVED) == (enough and not against and now_ms < request.expires_ms)
    assert (standing.state is S.DENIED) == against


@given(TERMS, SAID, NAMES, st.integers(1_000_000, 1_015_000))
def test_a_no_is_never_outvoted(terms: Terms, words: list[tuple[str, bool, int]], name: str, now_ms: int) -> None:
    request = a_request(terms)
    decisions = [*all_said(request, words), said(request, name, yes=False)]
    assert decide(request, decisions, now_ms).state is S.DENIED


@given(TERMS, SAID, st.integers(1_000_000, 1_015_000), st.integers(0, 10_000))
def test_time_only_ever_takes_an_approval_away(
    terms: Terms, words: list[tuple[str, bool, int]], now_ms: int, later_ms: int
) -> None:
    request = a_request(terms)
    decisions = all_said(request, words)
    before, after = (decide(request, decisions, at).state for at in (now_ms, now_ms + later_ms))
    assert after in (before, S.EXPIRED)


@given(TERMS, SAID)
def test_whatever_is_there_a_host_acts_only_on_enough_entitled_people(
    terms: Terms, words: list[tuple[str, bool, int]]
) -> None:
    request = a_request(terms)
    decisions = all_said(request, words)
    try:
        standing = judge(request, look(*decisions, state=S.APPROVED, now_ms=1_009_000), KEYS)
    except ApprovalRefused:
        return
    assert standing.state is S.APPROVED
    people = [name for name, _, _ in words]
    assert len(set(people)) == len(people) >= terms.needed
    assert all(yes and at_ms < request.expires_ms for _, yes, at_ms in words)
    assert not terms.approvers or set(people) <= set(terms.approvers)
    assert terms.self_approval or "sam" not in people


@given(TERMS, SAID, NAMES)
def test_what_a_person_may_still_say_never_spoils_the_record(
    terms: Terms, words: list[tuple[str, bool, int]], name: str
) -> None:
    """Whoever decides after ``check_open`` leaves decisions that a host accepts."""
    request, kept = a_request(terms), list[Decision]()
    for who, yes, at_ms in [*words, (name, True, 1_009_999)]:
        state = decide(request, kept, at_ms).state
        try:
            check_open(request, look(*kept, state=state, now_ms=at_ms), who)
        except ApprovalRefused:
            continue
        kept.append(said(request, who, yes=yes, at_ms=at_ms))
    verified(request, kept, KEYS)


REFUSALS = [
    ("changed arguments", ActionChanged),
    ("another approval's", DecisionReplayed),
    ("twice", DecisionReplayed),
    ("forged", ForgedApproval),
    ("unknown key", UnknownApprovalKey),
    ("not named", NotAnApprover),
    ("late", ApprovalExpired),
    ("expired", ApprovalExpired),
    ("denied", Denied),
    ("void", ApprovalVoid),
    ("used by somebody", ApprovalUsed),
    ("use of another", ApprovalUsed),
    ("forged use", ForgedApproval),
    ("the store's word alone", ForgedApproval),
]


@pytest.mark.parametrize(("case", "error"), REFUSALS)
def test_each_refusal_has_an_error_of_its_own(case: str, error: type[ApprovalRefused]) -> None:
    request = a_request(Terms(approvers=("alice", "bob"), expires_s=10))
    other = a_request(step="1")
    yes, elsewhere = said(request), said(other)
    use = Use(approval=other.id, action=other.action.digest, at_ms=1_000_600)
    looks = {
        "another approval's": look(elsewhere, state=S.APPROVED),
        "twice": look(yes, yes, state=S.APPROVED),
        "forged": look(said(request, keys=FORGED), state=S.APPROVED),
        "unknown key": look(said(request, keys=OTHERS), state=S.APPROVED),
        "not named": look(said(request, "mallory"), state=S.APPROVED),
        "late": look(said(request, at_ms=request.expires_ms), state=S.APPROVED),
        "expired": look(yes, state=S.APPROVED, now_ms=request.expires_ms),
        "denied": look(said(request, yes=False), state=S.DENIED),
        "void": look(yes, state=S.VOID),
        "used by somebody": look(yes, state=S.USED),
        "use of another": look(yes, state=S.USED, use=use.signed(KEYS)),
        "forged use": look(yes, state=S.USED, use=use.signed(FORGED)),
        "the store's word alone": look(state=S.APPROVED),
    }
    now = an_action(arguments="bb") if case == "changed arguments" else request.action

    def decided() -> None:
        check_request(request, KEYS, now)
        judge(request, looks[case], KEYS)

    with pytest.raises(error) as caught:
        decided()
    assert type(caught.value) is error
    assert request.id in str(caught.value)


def test_a_use_counts_as_long_as_the_approval_held_when_it_began() -> None:
    request = a_request(Terms(expires_s=10))
    use = Use(approval=request.id, action=request.action.digest, at_ms=1_009_000).signed(KEYS)
    later = request.expires_ms + 60_000
    standing = judge(request, look(said(request), state=S.USED, use=use, now_ms=later), KEYS)
    assert (standing.state, standing.by) == (S.USED, ("alice",))
    late = Use(approval=request.id, action=request.action.digest, at_ms=request.expires_ms).signed(KEYS)
    with pytest.raises(ForgedApproval, match="expired"):
        judge(request, look(said(request), state=S.USED, use=late, now_ms=later), KEYS)
    check_use(request, use, KEYS)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (S.APPROVED, AlreadyApproved),
        (S.DENIED, AlreadyDenied),
        (S.EXPIRED, ApprovalExpired),
        (S.USED, ApprovalUsed),
        (S.VOID, RunIsOver),
    ],
)
def test_nobody_decides_what_is_decided(state: S, error: type[ApprovalRefused]) -> None:
    request = a_request()
    with pytest.raises(error):
        check_open(request, look(said(request), state=state), "bob")


def test_who_may_decide() -> None:
    forbidden = a_request(Terms(self_approval=False))
    with pytest.raises(SelfApproval, match="'sam' has submitted"):
        check_open(forbidden, look(), "sam")
    check_open(forbidden, look(), "alice")
    with pytest.raises(SelfApproval, match="PENSTOCK_USER"):
        check_open(a_request(Terms(self_approval=False), submitter=""), look(), "alice")
    with pytest.raises(NotAnApprover, match="bob or cid; 2 needed"):
        check_open(a_request(Terms(approvers=("bob", "cid"), needed=2)), look(), "alice")
    with pytest.raises(ActionChanged):
        check_open(forbidden, look(), "alice", an_action(arguments="bb").digest)
    with pytest.raises(DecisionReplayed, match="once"):
        check_open(a_request(Terms(needed=2)), look(said(a_request(Terms(needed=2)))), "alice")
    assert who_may(forbidden) == "anybody, but not who submitted the job (sam)"
