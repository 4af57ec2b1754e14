"""Dependencies as operators see and change them: the store holds what hubs say, and what is wanted of them."""

import asyncio
import getpass
import json
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from actors.declared import FIELDS, PARTS, Misfit, checked, nearest, refuse
from admission.dependency import Dependency, as_plain
from cluster.store import Store
from penstock.dependency_views import DependencyAnswer, DependencyView, dependency_view, json_object
from penstock.errors import ClientError
from penstock.waiting import signals, told_within

COMMANDS: Final = ("open", "close", "probe")
CONFIRM_S: Final = 5.0
_POLL_S: Final = 0.1


class NoSuchDependency(ClientError):
    """No hub has ever spoken of a dependency of this name."""

    def __init__(self, name: str, known: list[str]) -> None:
        there_are = ", ".join(known) if known else "none: no deployment with dependencies has been started"
        super().__init__(f"there is no dependency {name!r}; known dependencies: {there_are}")
        self.name = name


class NotDefinedYet(ClientError):
    """A dependency whose hub has said nothing of it, so that there is nothing to change."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the hub of dependency {name!r} has not said yet how it is defined, so nothing was changed: "
            "look at `penstock deps`, and set it again when it is there"
        )
        self.name = name


class _Told(NamedTuple):
    """What the store has of a dependency. ``obeyed`` is the override that its hub says it obeys; None: it says none."""

    view: DependencyView
    override: str
    obeyed: str | None


class DependencyCalls:
    """What a client can ask and change of dependencies."""

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def dependencies(self) -> list[DependencyView]:
        """All dependencies, by name."""
        names, now_ms = await asyncio.gather(_names(self.store), self.store.server_ms())
        return [told.view for told in await asyncio.gather(*(_told(self.store, name, now_ms) for name in names))]

    async def dependency(self, name: str) -> DependencyView:
        """One dependency.

        Raises:
            NoSuchDependency: there is none of this name.
        """
        return (await self._known(name)).view

    async def set_dependency(self, name: str, changes: Mapping[str, Any]) -> DependencyAnswer:
        """Changes a dependency while it is in use, until :meth:`reset_dependency`.

        Of two changes at the same moment the later one holds.

        Args:
            name: the dependency's name.
            changes: fields of :class:`Dependency` with their new values, as in ``{"max_concurrency": 10}``. Of
                ``breaker``, ``retry`` and ``retry_budget`` only the given fields are changed; ``rate`` is given whole.

        Returns:
            Whether its hub has confirmed it within five seconds, and what it says.

        Raises:
            NoSuchDependency: there is none of this name.
            NotDefinedYet: its hub has not spoken yet.
            DefinitionError: the changed definition would not be valid; nothing was changed.
        """
        told = await self._known(name)
        if not told.view.definition:
            raise NotDefinedYet(name)
        plain = as_plain(redefined(name, told.view.definition, changes))
        changed = {field: plain[field] for field in changes}
        override = json.dumps(told.view.override | changed, allow_nan=False)

        def obeys(now: _Told) -> bool:
            return all(now.view.definition.get(field) == value for field, value in changed.items())

        return await self._wish(name, lambda key: self.store.set_fields(key, {"override": override}), obeys)

    async def reset_dependency(self, name: str) -> DependencyAnswer:
        """Takes back all that operators have set: what the app, or the operators' file, declares is in force again.

        Raises:
            NoSuchDependency: there is none of this name.
        """
        before = await self._known(name)

        def obeys(now: _Told) -> bool:
            if now.obeyed is not None:
                return now.obeyed == ""
            # A hub that does not tell what it obeys shows it where that makes a difference.
            fields = before.view.override
            return not before.override or any(
                now.view.definition.get(field) != before.view.definition.get(field) for field in fields
            )

        return await self._wish(name, lambda key: self.store.command(key, "HDEL", key, "override"), obeys)

    async def command_dependency(
        self, name: str, do: str, *, by: str | None = None, reason: str = ""
    ) -> DependencyAnswer:
        """Decides by hand what a dependency's breaker does.

        Args:
            name: the dependency's name.
            do: ``open`` (no call goes through until ``close`` or ``probe``), ``close`` (calls go through, and what was
                counted is forgotten) or ``probe`` (a few calls find out).
            by: who wants it; by default the user and machine.
            reason: why, for everybody who looks.

        Returns:
            Whether its hub has confirmed it within five seconds, and what it says.

        Raises:
            NoSuchDependency: there is none of this name.
            ValueError: no such command.
        """
        if do not in COMMANDS:
            raise ValueError(f"{do!r} is no command: use one of {', '.join(COMMANDS)}")
        await self._known(name)
        command = {
            "id": uuid.uuid4().hex,
            "do": do,
            "by": operator() if by is None else by,
            "reason": reason,
            "at_ms": await self.store.server_ms(),
        }
        return await self._wish(
            name,
            lambda key: self.store.set_fields(key, {"command": json.dumps(command)}),
            lambda now: now.view.command_done == command["id"],
        )

    async def _known(self, name: str) -> _Told:
        names = await _names(self.store)
        if name not in names:
            raise NoSuchDependency(name, names)
        return await _told(self.store, name, await self.store.server_ms())

    async def _wish(
        self, name: str, write: Callable[[str], Awaitable[Any]], obeys: Callable[[_Told], bool]
    ) -> DependencyAnswer:
        """Writes a wish, tells the hub, and waits until it says, after that, that it obeys."""
        store, loop = self.store, asyncio.get_running_loop()
        channel = store.keys.dependencies_channel
        async with signals(store, channel) as told:
            written_ms = await store.server_ms()
            await write(store.keys.dependency(name))
            await store.publish(channel, f"changed {name}")
            until = loop.time() + CONFIRM_S
            while True:
                now = await _told(store, name, await store.server_ms())
                confirmed = (now.view.at_ms or 0) >= written_ms and obeys(now)
                left_s = until - loop.time()
                if confirmed or left_s <= 0:
                    return DependencyAnswer(confirmed=confirmed, dependency=now.view)
                await told_within(told, min(_POLL_S, left_s))


def redefined(name: str, definition: Mapping[str, Any], changes: Mapping[str, Any]) -> Dependency:
    """A definition with changes.

    Raises:
        DefinitionError: it would not be valid; the text has all that is wrong.
    """
    # What a newer hub says besides is its own business: it keeps it.
    plain = {field: _known_part(field, value) for field, value in definition.items() if field in FIELDS}
    wrong = [Misfit((str(field),), nearest(field, FIELDS)) for field in changes if field not in FIELDS]
    for field, value in changes.items():
        if field in PARTS and isinstance(value, Mapping):
            plain[field] = dict(plain.get(field) or {}) | dict(value)
        elif field in FIELDS:
            plain[field] = value
    result = checked(name, plain)
    if isinstance(result, Dependency) and not wrong:
        return result
    found = wrong + (result if isinstance(result, list) else [])
    raise refuse("nothing was changed", [misfit.of(name) for misfit in found])


def operator() -> str:
    """Who is asking: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id that has no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _known_part(field: str, value: Any) -> Any:
    known = PARTS.get(field)
    if known is None or not isinstance(value, Mapping):
        return value
    return {name: each for name, each in value.items() if name in known}


async def _names(store: Store) -> list[str]:
    key = store.keys.dependencies
    return sorted(name.decode() for name in await store.command(key, "SMEMBERS", key))


async def _told(store: Store, name: str, now_ms: int) -> _Told:
    key = store.keys.dependency(name)
    state, override = await store.command(key, "HMGET", key, "state", "override")
    obeyed = json_object(state).get("override")
    text = override.decode(errors="replace") if override else ""
    return _Told(dependency_view(name, state, override, now_ms), text, obeyed if isinstance(obeyed, str) else None)
