"""Whether this server can do its work: it can when its store takes a write and gives an answer."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from lockstep.server.store import Store

DEADLINE_S = 5.0
WATCHED_EVERY_S = 5.0


class Health:
    """Tries the store out for whoever asks; those who ask meanwhile share the answer.

    Attributes:
        deadline_s: how long the store may take.
    """

    def __init__(self, store: Store, deadline_s: float = DEADLINE_S) -> None:
        self._store, self.deadline_s = store, deadline_s
        self._trying: asyncio.Task[str] | None = None

    async def why_unwell(self) -> str:
        """Say what is wrong; empty when all is well."""
        if self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._try(), name="health")
        return await asyncio.shield(self._trying)

    async def _try(self) -> str:
        try:
            async with asyncio.timeout(self.deadline_s):
                await self._store.try_out()
        except TimeoutError:
            return f"the store has not answered for {self.deadline_s:g} s"
        except Exception as error:  # whatever a database raises
            return f"the store cannot be used: {error}".splitlines()[0]
        return ""


class StoreHealthServicer(HealthServicer):  # type: ignore[misc]
    """grpc.health.v1.Health that tries the store out at each Check, and now and then for those who Watch."""

    def __init__(self, health: Health, services: tuple[str, ...]) -> None:
        super().__init__()
        self._health, self._services = health, ("", *services)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        await self.look()
        return await super().Check(request, context)

    async def look(self) -> None:
        """Try the store out, and tell those who watch when that has changed."""
        is_well = not await self._health.why_unwell()
        status = health_pb2.HealthCheckResponse.SERVING if is_well else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._services:
            await self.set(name, status)

    async def keep_looking(self) -> None:
        """Look now and then, for as long as the server runs."""
        while True:
            await self.look()
            await asyncio.sleep(WATCHED_EVERY_S)
