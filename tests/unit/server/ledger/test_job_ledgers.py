"""Ledgers are in memory as long as somebody is told of them, and until they are stored."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lockstep.server.ledger.job_ledgers import JobLedgers
from lockstep.server.store import Store
from tests.unit.server.ledger.test_ledger import account


async def test_a_ledger_that_could_not_be_stored_is_kept_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "lockstep.db")
    saved: list[Any] = []
    fails, is_saving = asyncio.Event(), asyncio.Event()

    async def save(ledgers: Any) -> None:
        is_saving.set()
        await fails.wait()
        if not saved:
            saved.append(None)
            raise OSError("the disk is full")
        saved.append(ledgers)

    monkeypatch.setattr(store.ledgers, "save_ledgers", save)
    book = JobLedgers(store.ledgers)
    await book.report(account(0, 1, forward=5.0))
    storing = asyncio.create_task(book.store_all())
    await is_saving.wait()
    book.forget(lambda job_id: False)  # in the middle of it
    fails.set()
    await storing
    book.forget(lambda job_id: False)
    assert "job-1" in book.newest()
    await book.store_all()
    assert list(saved[-1]) == ["job-1"]
    book.forget(lambda job_id: False)
    assert not book.newest()
    store.close()
