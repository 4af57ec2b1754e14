"""``penstock policy``: who may have tools do what, and why a call is permitted or not."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import shown
from penstock.cli.connection import ask
from penstock.cli.outcome import Exit, Failure, guarded, plain, say

if TYPE_CHECKING:
    from actors.job import Job
    from penstock.policy_views import PolicyExplanation, PolicyView

group = typer.Typer(
    help="Show, change and explain the policy: which tools may do what, for whom.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]


@group.command("set")
@guarded
def set_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The policy (YAML); - is the standard input.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for everybody who looks.", show_default=False)] = "",
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Also with names of tools or agents that no host serves.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a policy in force: hosts obey it at once. An empty file brings the default back."""
    text, place = _text(file)
    answer = ask(lambda client: client.set_policy(text, place=place, why=reason, checked=not unchecked))
    view = answer.policy
    if as_json:
        shown.data(answer)
    else:
        typer.echo(view.version)
    done = "is in force" if answer.changed else "was in force already"
    say(f"policy {view.version} {done}: {answer.rules} rule{'' if answer.rules == 1 else 's'}")
    if answer.unchecked and not unchecked:
        say(f"not checked: {answer.unchecked}")


@group.command()
@guarded
def show(
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="One of `policy history`; by default the one in force.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the policy in force, as it was written."""
    view = ask(lambda client: client.policy(version))
    if as_json:
        shown.data(view)
        return
    say(_headline(view))
    typer.echo(plain(view.text).rstrip("\n"))


@group.command()
@guarded
def history(as_json: AsJson = False) -> None:
    """List the policies that were set lately, the newest first."""
    found = ask(lambda client: client.policy_history())
    if as_json:
        for each in found:
            shown.data(each)
        return
    if not found:
        say("nobody has set a policy: the default holds (penstock policy show)")
        return
    made = shown.table("number", "version", "set", "by", "why", right=("number",))
    for each in found:
        row = (each.number, each.version, shown.moment(each.since_ms), each.by, each.why)
        shown.row(made, *row)
    shown.console().print(made)


@group.command()
@guarded
def explain(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A run's id, a job as JSON, or a file with one.")],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name.")],
    arguments: Annotated[str, typer.Argument(metavar="ARGS", help="The call's arguments: a JSON object.")] = "{}",
    policy: Annotated[
        str | None, typer.Option(metavar="FILE", help="Try this policy instead of the one in force.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain what the policy says of a call: every rule, whether it matches, and the outcome. Nothing is called."""
    asker = _job(job)
    values = _object("ARGS", arguments)
    text, place = (None, "policy") if policy is None else _text(policy)
    found = ask(lambda client: client.explain_policy(asker, tool, values, policy=text, place=place))
    if as_json:
        shown.data(found)
    else:
        _explanation(found)


def _explanation(found: "PolicyExplanation") -> None:
    made = shown.table("rule", "says", "matches", "why")
    for check in found.checks:
        shown.row(made, check.rule, check.outcome, "yes" if check.matches else "no", check.why)
    out = shown.console()
    grants = ", ".join(found.grants) or "none"
    who = f"agent {found.agent}, tenant {found.tenant}, grants: {grants}"
    out.print(plain(f"tool {found.tool} ({found.risk}), {who}; policy {found.version}"))
    out.print(made)
    out.print(plain(f"{found.outcome} by {found.rule}: {found.text}"))
    if found.terms is not None:
        terms = found.terms
        of = f" of {', '.join(terms.approvers)}" if terms.approvers else ", anybody"
        own = "" if terms.self_approval else "; not whoever submitted the job"
        out.print(plain(f"approvals needed: {terms.needed}{of}, within {shown.length(terms.expires_s)}{own}"))
    for note in found.notes:
        say(f"note: {note}")


def _headline(view: "PolicyView") -> str:
    if view.since_ms is None:
        return "no policy was set: the default holds"
    word = "in force since" if view.in_force else "was put in force"
    why = f": {view.why}" if view.why else ""
    return f"policy {view.version} (number {view.number}), {word} {shown.moment(view.since_ms)} by {view.by}{why}"


def _text(file: str) -> tuple[str, str]:
    """A policy's text and its name.

    Raises:
        DefinitionError: the file cannot be read.
    """
    from actors.policy_file import read_policy

    if file == "-":
        return sys.stdin.buffer.read().decode("utf-8-sig", "replace"), "standard input"
    said = read_policy(Path(file), "name a file that can be read, or - for the standard input")
    return said.text, said.place


def _job(text: str) -> "str | Job":
    """A run's id, or the job that a JSON text or a file holds.

    Raises:
        Failure: it is neither.
    """
    from penstock.checking import as_job
    from penstock.names import is_run_id

    if is_run_id(text):
        return text
    fields = _object("JOB", text if text.lstrip().startswith("{") else _first_job(text))
    found = as_job(1, {"custom_id": "explained", **fields})
    if isinstance(found, list):
        problems = "; ".join(f"{problem.field}: {problem.reason}" for problem in found)
        raise Failure(f"JOB is no job: {problems}", Exit.BAD_INPUT)
    return found


def _first_job(file: str) -> str:
    """A file's JSON object, or the first line of a batch file."""
    try:
        content = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        fix = "give a run's id, a job as JSON, or a file with one"
        raise Failure(f"JOB {file!r} cannot be read ({reason}): {fix}", Exit.BAD_INPUT) from None
    first = next((line for line in content.splitlines() if line.strip()), "")
    try:
        json.loads(first)
    except ValueError:
        return content  # one object over several lines
    return first


def _object(what: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{what} is no JSON: {error}", Exit.BAD_INPUT) from None
    if not isinstance(value, dict):
        raise Failure(f"{what} must be a JSON object, as in '{{\"amount_cents\": 500}}'", Exit.BAD_INPUT)
    return value
