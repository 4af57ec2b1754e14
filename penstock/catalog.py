"""What jobs are checked against: the agents of an app that is at hand, and those that hosts have published."""

import json
import logging
import time
from typing import Any, Final

from actors.registry import App
from cluster import reader
from cluster.store import Store
from penstock.checking import Facts, InputCheck, accept_anything, adapter_check, schema_check

_LOG: Final = logging.getLogger("penstock.client")


class Catalog:
    """Makes the facts that jobs are checked against, and keeps compiled checks between submissions."""

    def __init__(self, store: Store, app: App | None) -> None:
        self._store = store
        self._app = app
        self._compiled: dict[str, InputCheck] = {}
        self._facts: Facts | None = None

    async def facts(self) -> Facts:
        """The facts as of now."""
        published = await reader.catalog(self._store)
        agents = {name: self._check(name, text) for name, text in published.items()}
        if self._app is not None:
            agents.update({name: adapter_check(agent.input_adapter) for name, agent in self._app.agents.items()})
        before_ms = time.time() * 1000
        now_ms = await self._store.server_ms()
        # The answer took a moment, and the server read its clock somewhere within it.
        ahead_ms = round((before_ms + time.time() * 1000) / 2 - now_ms)
        self._facts = Facts(agents, self._store.settings.payload_limit_bytes, now_ms, ahead_ms)
        return self._facts

    async def recent_facts(self) -> Facts:
        """The facts as of the last time that somebody asked: good enough to accept by, not to refuse by."""
        return self._facts or await self.facts()

    def _check(self, name: str, text: str) -> InputCheck:
        check = self._compiled.get(text)
        if check is None:
            try:
                schema: dict[str, Any] = json.loads(text)["input_schema"]
                check = schema_check(schema)
            except (KeyError, TypeError, ValueError) as error:
                # The host checks again and says what is wrong; a schema that we cannot read must stop nobody.
                _LOG.warning("the published input schema of agent %r cannot be used: %s", name, error)
                check = accept_anything
            self._compiled[text] = check
        return check
