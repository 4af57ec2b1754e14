"""A branch that may cause no effects waits, before its first one, until it is promoted."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from actors.engine import RunEngine

REASON: Final = "promotion"
_LOOK_AGAIN_MS: Final = 86_400_000


async def right_to_effects(engine: "RunEngine", path: str) -> None:
    """Returns when the run may cause effects, as far as this host knows; the run is unloaded meanwhile.

    The intent decides: it is refused (:class:`actors.errors.ReadOnlyBranch`) where the right was lost since.
    """
    while engine.read_only:
        store = engine.services.store
        key = store.keys.run(engine.claim.id)
        # Asking is a step under way: the run must not be unloaded without this wait among its waits.
        engine.active += 1
        try:
            engine.read_only = await store.command(key, "HGET", key, "readonly") is not None
        finally:
            engine.active -= 1
        if engine.read_only:
            # Whoever promotes the branch pokes the run. Nothing else ends this wait but the run's own deadline; it
            # looks again once a day all the same.
            await engine.wait_until(path, engine.services.now_ms() + _LOOK_AGAIN_MS, REASON, pokes=True)
            await engine.may_start()
