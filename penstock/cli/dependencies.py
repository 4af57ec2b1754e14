"""``penstock deps``: dependencies, what is known of them, and what operators want of them."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from penstock.cli import shown
from penstock.cli.connection import ask
from penstock.cli.outcome import Exit, Failure, guarded, say

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.dependency_views import DependencyAnswer

_HELP: Final = ("-h", "--help")
_NONE: Final = ("none", "null")


class _ShownByDefault(TyperGroup):
    """``deps`` and ``deps NAME`` are ``deps show`` and ``deps show NAME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = next((word for word in args if not word.startswith("-")), None)
        if first not in self.commands and not (first is None and any(word in _HELP for word in args)):
            args = ["show", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


group = typer.Typer(
    cls=_ShownByDefault,
    help="Show dependencies and what is known of them: `deps`, or `deps NAME` for one; or change them.",
    no_args_is_help=False,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The dependency's name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why, for everybody who looks.", show_default=False)]


@group.command()
@guarded
def show(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="By default all of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show all dependencies, or all that is known of one (`deps NAME` is the same)."""
    from penstock.cli import dependency_tables as tables

    if name is not None:
        known = name
        one = ask(lambda client: client.dependency(known))
        shown.data(one) if as_json else tables.details(one)
        if one.stale and not as_json:
            say(f"{one.name}: {tables.silence(one)}: what is shown may not hold any more")
        return
    found = ask(lambda client: client.dependencies())
    if as_json:
        for each in found:
            shown.data(each)
    elif found:
        tables.listing(found)
        for each in found:
            if each.stale:
                say(f"{each.name}: {tables.silence(each)}: what is shown may not hold any more")
    else:
        say("no dependencies are known: none are declared, or no deployment has been started")


@group.command("set")
@guarded
def change(
    name: NameArgument,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RESOURCE=AMOUNT/PER",
            help="As in requests=500/1m: replaces all limits of this resource. requests=none removes them.",
            show_default=False,
        ),
    ] = None,
    max_concurrency: Annotated[
        str | None, typer.Option(metavar="N|none", help="Calls under way at once in the whole cluster.")
    ] = None,
    breaker: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE|none", help="As in open_s=10.", show_default=False)
    ] = None,
    retry: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="As in maximum_attempts=3.", show_default=False)
    ] = None,
    retry_budget: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE|none", help="As in ratio=0.05.", show_default=False)
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Take back all that operators have set.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change a dependency while it is in use. What is not named stays as it is; --reset brings the declaration back."""
    changes: dict[str, Any] = {}
    if max_concurrency is not None:
        changes["max_concurrency"] = _value(max_concurrency)
    for field, texts in (("breaker", breaker), ("retry", retry), ("retry_budget", retry_budget)):
        if texts:
            changes[field] = _fields(f"--{field.replace('_', '-')}", texts)
    wanted = bool(changes or limit)
    if reset == wanted:
        what = "--reset takes everything back: give nothing else with it" if reset else "say what to change, or --reset"
        raise Failure(f"{what} (see penstock deps set --help)", Exit.BAD_INPUT)

    async def work(client: "Client") -> "DependencyAnswer":
        if reset:
            return await client.reset_dependency(name)
        if limit:
            view = await client.dependency(name)
            changes["rate"] = with_limits(view.definition.get("rate", []), limit)
        return await client.set_dependency(name, changes)

    answer = ask(work)
    done = "what operators had set is taken back" if reset else f"{', '.join(changes)} changed"
    _answered(answer, done, as_json=as_json)


@group.command("open")
@guarded
def open_(name: NameArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Stop all calls to a dependency, until `close` or `probe`."""
    _command(name, "open", reason, as_json=as_json)


@group.command()
@guarded
def close(name: NameArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let calls through again; what the breaker has counted is forgotten."""
    _command(name, "close", reason, as_json=as_json)


@group.command()
@guarded
def probe(name: NameArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let a few calls through, to find out whether the dependency is well again."""
    _command(name, "probe", reason, as_json=as_json)


def with_limits(present: list[Any], texts: list[str]) -> list[dict[str, Any]]:
    """A definition's limits with those of the named resources replaced.

    Raises:
        Failure: a text is no limit.
    """
    from admission.dependency import RESOURCES

    named: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        resource, equals, said = text.partition("=")
        amount, slash, per = said.partition("/")
        if not equals or not amount or (slash and not per):
            raise Failure(f"--limit {text!r}: write it as in requests=500/1m, or requests=none", Exit.BAD_INPUT)
        if resource not in RESOURCES:
            raise Failure(f"--limit {text!r}: {resource!r} is no resource: use {', '.join(RESOURCES)}", Exit.BAD_INPUT)
        limits = named.setdefault(resource, [])
        if said not in _NONE:
            limits.append({"resource": resource, "amount": _value(amount), **({"per": _value(per)} if slash else {})})
    kept = [limit for limit in present if limit["resource"] not in named]
    return kept + [limit for limits in named.values() for limit in limits]


def _fields(option: str, texts: list[str]) -> dict[str, Any] | None:
    """``field=value`` texts as fields; None where the whole is to go."""
    if any(text in _NONE for text in texts):
        if len(texts) > 1:
            raise Failure(f"{option} none takes the whole away: give no fields with it", Exit.BAD_INPUT)
        return None
    fields: dict[str, Any] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals or not field or not value:
            raise Failure(f"{option} {text!r}: write it as field=value", Exit.BAD_INPUT)
        fields[field] = value.split(",") if field == "retryable" else _value(value)
    return fields


def _value(text: str) -> Any:
    """A number where it is one, nothing for ``none``, and otherwise the text, to be refused with its field's name."""
    if text in _NONE:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _command(name: str, do: str, reason: str, *, as_json: bool) -> None:
    words = {"open": "no calls go through", "close": "calls go through", "probe": "a few calls find out how it is"}

    def work(client: "Client") -> Coroutine[Any, Any, "DependencyAnswer"]:
        return client.command_dependency(name, do, reason=reason)

    _answered(ask(work), words[do], as_json=as_json)


def _answered(answer: "DependencyAnswer", done: str, *, as_json: bool) -> None:
    """Says whether the hub obeys.

    Raises:
        typer.Exit: it has not said so in time.
    """
    from penstock.cli.dependency_tables import silence
    from penstock.dependencies import CONFIRM_S

    view = answer.dependency
    if as_json:
        shown.data(answer)
    if answer.confirmed:
        say(f"{view.name}: {done}; its hub obeys")
        return
    state = silence(view) or "it speaks, and does not say that it obeys"
    say(
        f"{view.name}: this is in the store, but its hub has not confirmed it within {CONFIRM_S:g} s ({state}). "
        f"It obeys as soon as it has read it: see penstock deps {view.name}"
    )
    raise typer.Exit(Exit.TIMED_OUT)
