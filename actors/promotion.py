"""A branch that may cause no effects waits, before its first one, until it is promoted."""

from typing import TYPE_CHECKING, Final

from actors.errors import ReadOnlyBranch

if TYPE_CHECKING:
    from actors.engine import RunEngine
    from actors.tool_step import ToolStep

REASON: Final = "promotion"
_LOOK_AGAIN_MS: Final = 86_400_000


async def right_to_effects(step: "ToolStep") -> None:
    """Returns when the run may cause effects, as far as this host knows; the run is unloaded meanwhile.

    The intent decides: it is refused where the right was lost since. What a step may take does not include this wait.

    Raises:
        ReadOnlyBranch: it is to undo an effect, and the branch that has the right now may count on that one.
    """
    engine = step.engine
    began = engine.services.clock()
    while not await has_right(engine):
        if step.undoes:
            raise ReadOnlyBranch
        # Whoever promotes the branch pokes the run. Nothing else ends this wait but the run's own bounds; it looks
        # again once a day all the same.
        await engine.wait_until(step.path, engine.services.now_ms() + _LOOK_AGAIN_MS, REASON, pokes=True)
        await engine.may_start()
    step.asked.began += engine.services.clock() - began


async def has_right(engine: "RunEngine") -> bool:
    """Whether the run may cause effects by now."""
    if engine.read_only:
        store = engine.services.store
        key = store.keys.run(engine.claim.id)
        # Asking is a step under way: the run must not be unloaded before it waits.
        engine.active += 1
        try:
            engine.read_only = await store.command(key, "HGET", key, "readonly") is not None
        finally:
            engine.active -= 1
    return not engine.read_only
