"""The ledgers of jobs in the store: where the time of their workers went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import JSON, Connection, String, bindparam, exists, select

from lockstep.server.store import tables
from lockstep.server.store.database import Database
from lockstep.server.store.dialect import insert_or_update

_MOST_JOBS_OF_A_QUERY = 500

_OF_JOB, _TOLD = bindparam("of_job", type_=String), bindparam("told", type_=JSON)
_INSERT = insert_or_update(tables.ledgers).from_select(
    ["job_id", "ledger"], select(_OF_JOB, _TOLD).where(exists().where(tables.jobs.c.job_id == _OF_JOB))
)
_UPSERT = _INSERT.on_conflict_do_update(index_elements=["job_id"], set_={"ledger": _INSERT.excluded.ledger})


class LedgerStore:
    """One ledger a job, as `JobLedger` writes it in JSON."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save_ledgers(self, ledgers: Mapping[str, Mapping[str, Any]]) -> None:
        """Store ledgers by job_id, in place of those before; those of jobs that were deleted are left out."""
        rows = [{"of_job": job_id, "told": ledger} for job_id, ledger in ledgers.items()]
        await self._database.write(lambda connection: connection.execute(_UPSERT, rows))

    async def load_ledgers(self, job_ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Read the ledgers of jobs, by job_id; those that have none are left out."""
        wanted = list(job_ids)

        def read(connection: Connection) -> dict[str, Mapping[str, Any]]:
            found: dict[str, Mapping[str, Any]] = {}
            for start in range(0, len(wanted), _MOST_JOBS_OF_A_QUERY):
                some = wanted[start : start + _MOST_JOBS_OF_A_QUERY]
                query = select(tables.ledgers).where(tables.ledgers.c.job_id.in_(some))
                found |= {row.job_id: row.ledger for row in connection.execute(query)}
            return found

        return await self._database.read(read)
