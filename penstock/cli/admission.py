"""``penstock admission``: the operators' rules for admission, by class and by tenant."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import shown
from penstock.cli.connection import ask
from penstock.cli.outcome import guarded, plain, say

if TYPE_CHECKING:
    from penstock.admission_views import AdmissionView

group = typer.Typer(
    help="Show and change the rules for admission: who may wait how long, and who gets which share.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]


@group.command("set")
@guarded
def set_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The rules (YAML); - is the standard input.")],
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why, for everybody who looks.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Put rules for admission in force. An empty file brings the defaults back."""
    text, place = _text(file)
    answer = ask(lambda client: client.set_admission(text, place=place, why=why))
    view = answer.rules
    if as_json:
        shown.data(answer)
    else:
        typer.echo(view.version)
    say(f"rules {view.version} {'are in force' if answer.changed else 'were in force already'}")
    for line in answer.says:
        say(f"  {line}")


@group.command()
@guarded
def show(
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="One of `admission history`; by default those in force.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the rules for admission in force, as they were written."""
    view = ask(lambda client: client.admission(version))
    if as_json:
        shown.data(view)
        return
    say(_headline(view))
    typer.echo(plain(view.text).rstrip("\n"))


@group.command()
@guarded
def history(as_json: AsJson = False) -> None:
    """List the rules that were set lately, the newest first."""
    found = ask(lambda client: client.admission_history())
    if as_json:
        for each in found:
            shown.data(each)
        return
    if not found:
        say("nobody has set rules for admission: the defaults hold (penstock admission show)")
        return
    made = shown.table("number", "version", "set", "by", "why", right=("number",))
    for each in found:
        shown.row(made, each.number, each.version, shown.moment(each.since_ms), each.by, each.why)
    shown.console().print(made)


def _headline(view: "AdmissionView") -> str:
    if view.since_ms is None:
        return "no rules for admission were set: the defaults hold"
    word = "in force since" if view.in_force else "were put in force"
    why = f": {view.why}" if view.why else ""
    return f"rules {view.version} (number {view.number}), {word} {shown.moment(view.since_ms)} by {view.by}{why}"


def _text(file: str) -> tuple[str, str]:
    """A file's text and its name.

    Raises:
        DefinitionError: the file cannot be read.
    """
    from actors.admission_file import read_admission

    if file == "-":
        return sys.stdin.buffer.read().decode("utf-8-sig", "replace"), "standard input"
    said = read_admission(Path(file), "name a file that can be read, or - for the standard input")
    return said.text, said.place
