"""What a host gives to the runs on it."""

from typing import TYPE_CHECKING, Any, Protocol

from actors.attempts import Attempts
from actors.authority import Authority
from actors.committer import Committer
from admission.signature import Keyring
from cluster.store import Store

if TYPE_CHECKING:
    from actors.contract import Tool
    from actors.engine import RunEngine


class Services(Protocol):
    """The host, as its runs see it."""

    host: str
    store: Store
    committer: Committer
    attempts: Attempts
    authority: Authority
    payload_limit_bytes: int
    max_losses: int
    tools: "dict[str, Tool[Any, Any]]"
    approval_keys: Keyring

    def now_ms(self) -> int:
        """The server's time as this host estimates it."""

    def clock(self) -> float:
        """Seconds of this host's clock, that only goes on."""

    def draw(self) -> float:
        """A uniform random number in [0, 1)."""

    def closing(self) -> bool:
        """Whether this process is leaving its event loop, so that a cancellation is nobody's but its own."""

    def lease_holds(self) -> bool:
        """Whether this host may still start anything."""

    async def lease_renewed(self) -> None:
        """Returns when it may again."""

    async def has_open_intent(self, run_id: str, path: str) -> bool:
        """Whether a run's journal has an intent at a step that is not closed."""

    def gone(self, engine: "RunEngine") -> None:
        """The run holds no slot of this host any more."""
