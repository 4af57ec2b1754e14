"""Who may have how many calls under way at once, of all that the cluster may have. Pure."""

import math
from collections.abc import Mapping

from admission.hub_hosts import HostFacts
from admission.split import Turns


class Places:
    """Divides ``max_concurrency`` among hosts, by turns, and gives nobody what another one may still use."""

    def __init__(self) -> None:
        self.learns_until = -math.inf
        self._turns = Turns()
        self._turn_at = -math.inf
        self._parts: dict[str, int] = {}

    def of(self, name: str, hosts: Mapping[str, HostFacts], total: int, now: float, period_s: float, held: int) -> int:
        """How many places a host has from now on.

        Args:
            name: the host's.
            hosts: all of them, this one too.
            total: places there are.
            now: the present.
            period_s: how long a turn is.
            held: how many it says it has.
        """
        wants = {each: facts.wanted_places for each, facts in hosts.items() if facts.wanted_places > 0}
        if now - self._turn_at >= period_s or (name in wants and name not in self._parts):
            self._turn_at = now
            parts = self._turns.places(total, wants)
            spare = max(0, total - sum(wants.values())) // max(1, len(hosts))
            self._parts = {each: parts.get(each, 0) + spare for each in hosts}
        # What others were told they have until they come and hear of less.
        others = sum(facts.most_places for each, facts in hosts.items() if each != name)
        places = max(0, min(self._parts.get(name, 0), total - others))
        # Hosts may have been given places that the snapshot does not know of; they are about to say so.
        return min(places, held) if now < self.learns_until else places
