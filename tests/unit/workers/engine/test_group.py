"""A rank that torchrun has started, among others that write to the same terminal."""

import sys
from types import SimpleNamespace

import pytest

from lockstep.workers.engine.exchange import group


def test_what_ends_a_rank_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=pieces.append, flush=lambda: None))
    try:
        raise ValueError("one line\nand another")
    except ValueError as error:
        group._write_whole(type(error), error, error.__traceback__)
    (piece,) = pieces
    assert piece.startswith("Traceback (most recent call last):\n")
    assert piece.endswith("ValueError: one line\nand another\n")
