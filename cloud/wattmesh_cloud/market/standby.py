"""A second process that knows every market's state and goes on as the writer when the first one is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from wattmesh_a2a.clock import NS_PER_S, Clock

from wattmesh_cloud.config import CloudConfig
from wattmesh_cloud.market.journal import has_writer, journal_path, take_over
from wattmesh_cloud.market.replica import Standby

_POLL_NS = NS_PER_S // 5
_TELL_NS = 10 * NS_PER_S


class Following:
    """The standbys of all areas of a cloud's file.

    Args:
        config: The same file as the writer's; the journals are in its state folder, which both processes see.
    """

    def __init__(self, config: CloudConfig) -> None:
        areas = (config.model.market, *config.model.areas)
        self._paths = {one.area: journal_path(config.state, one.area) for one in areas}
        self.standbys = {one.area: Standby(one, self._paths[one.area]) for one in areas}

    def catch_up(self) -> int:
        """Apply what has come; how many entries."""
        return sum(one.catch_up() for one in self.standbys.values())

    def alone(self) -> bool:
        """Whether every area has a journal, and none has a living writer."""
        return all(path.exists() and not has_writer(path) for path in self._paths.values())

    def promote(self) -> None:
        """Fence the writers of all areas, also living ones."""
        for path in self._paths.values():
            take_over(path)

    def told(self, *, hashed: bool = False) -> str:
        """Where each area stands, as one line of JSON; the hash of a state is work."""
        return json.dumps(
            {
                name: {
                    "entries": one.replica.count,
                    "trades": len(one.replica.engine.trades),
                    "chain": one.chain,
                    "writer": has_writer(self._paths[name]),
                    **({"state_hash": one.replica.state_hash()} if hashed else {}),
                }
                for name, one in self.standbys.items()
            }
        )


async def follow(
    following: Following,
    clock: Clock,
    stop: asyncio.Event,
    tell: Callable[[str], None],
    *,
    take_over_after_s: float | None,
) -> bool:
    """Follow until stopped, or until every writer has been gone for so long.

    Args:
        following: Kept up to date.
        clock: Of the pauses.
        stop: Ends it.
        tell: Gets a line now and then.
        take_over_after_s: None: follow for ever. A writer that is only restarted should be back before.

    Returns:
        Whether to go on as the writer.
    """
    alone_since: int | None = None
    told = -_TELL_NS
    while not stop.is_set():
        following.catch_up()
        now = clock.monotonic_ns()
        if now - told >= _TELL_NS:
            told = now
            tell(following.told())
        if take_over_after_s is not None and following.alone():
            alone_since = now if alone_since is None else alone_since
            if now - alone_since >= take_over_after_s * NS_PER_S:
                return True
        else:
            alone_since = None
        await clock.sleep_until_ns(now + _POLL_NS)
    return False
