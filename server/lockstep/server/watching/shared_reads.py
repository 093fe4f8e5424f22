"""What many followers ask for is read and translated once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

_MOST_BYTES = 16 << 20


class SharedReads:
    """Reads that are under way, and the newest messages that came of them.

    Followers that stand at the same place and want the same are sent the same bytes: those that ask while the read is
    under way, and those that come a little later. Who comes so late that the message is forgotten reads for itself.

    Args:
        most_bytes: what the messages that are kept may take.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._kept_bytes = 0
        self._most_bytes = most_bytes

    async def read(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Do a piece of work, or wait for the end of the same piece that is under way.

        Args:
            key: names the work, and the moment from which on its result is good enough.
            work: a read; it goes on when who asked first has gone away.
        """
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda task: self._end(key, task))
        result: T = await asyncio.shield(task)
        return result

    def _end(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # whoever waits is told; nobody may be left

    def kept(self, key: Hashable) -> Any | None:
        """Return what was kept under a key; None when nothing was, or when it is forgotten."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def keep(self, key: Hashable, value: Any, size_bytes: int) -> None:
        """Keep something for those who come a little later, as long as there is room."""
        self.forget(key)
        self._kept[key] = value, size_bytes
        self._kept_bytes += size_bytes
        while self._kept_bytes > self._most_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._kept_bytes -= freed

    def forget(self, key: Hashable) -> None:
        """Keep it no longer."""
        if key in self._kept:
            self._kept_bytes -= self._kept.pop(key)[1]
