"""The connection to the launcher: the orders that wait to go down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from lockstep.v1.internal_service_pb2 import ConnectLauncherResponse


class LauncherConnection:
    """One connection of the launcher: the orders that wait to go down.

    Attributes:
        is_ready: the launcher has told what gangs there are; before that it is given no orders.
    """

    def __init__(self) -> None:
        self._orders: asyncio.Queue[ConnectLauncherResponse | None] = asyncio.Queue()
        self.is_ready = False

    def order(self, order: ConnectLauncherResponse) -> None:
        """Queue an order."""
        self._orders.put_nowait(order)

    def end(self) -> None:
        """End the connection after the orders that are queued."""
        self._orders.put_nowait(None)

    async def orders(self) -> AsyncIterator[ConnectLauncherResponse]:
        """Yield orders until the connection is ended."""
        while (order := await self._orders.get()) is not None:
            yield order
