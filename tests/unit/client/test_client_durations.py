"""Lengths of time and numbers, as people are told of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lockstep.client.cli import output
from lockstep.client.types import Timeline
from lockstep.contract.wording import count, part_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "0 ms"), (0.0123, "12 ms"), (0.999, "999 ms"), (3.781, "3.8 s"), (11.2, "11 s")]
)
def test_a_length_of_time_is_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert output.short_time(seconds) == words


def test_what_a_clock_that_was_set_back_cannot_tell_is_not_told() -> None:
    assert output.between(at(0), at(90)) == "90 s"
    assert output.between(at(90_000), at(0)) == "not known: the server's clock was set back"
    assert output.between(at(0), None) == output.between(None, at(0)) == ""


def test_the_legs_of_a_start_up_always_come_in_one_order() -> None:
    cold = Timeline(submitted=at(0), admitted=at(1), placed=at(3), data_ready=at(6), joined=at(7), first_step=at(8))
    order = ["admitted", "placed", "data_ready", "joined", "first_step"]
    assert cold.legs() == list(zip(order, [1.0, 2.0, 3.0, 1.0, 1.0], strict=True))
    # A worker that was warm has its data before the last one is up.
    warm = Timeline(submitted=at(0), admitted=at(1), placed=at(3), data_ready=at(2), joined=at(4), first_step=at(5))
    assert warm.legs() == list(zip(order, [1.0, 2.0, 0.0, 1.0, 1.0], strict=True))


def test_the_legs_of_a_start_up_add_up_also_when_a_clock_was_set_back() -> None:
    timeline = Timeline(submitted=at(90_000), admitted=at(90_001), placed=at(2), joined=at(90_003))
    assert timeline.legs() == [("admitted", 1.0), ("placed", 0.0), ("joined", 2.0)]
    assert Timeline().legs() == []


def test_the_noun_goes_with_what_there_is_in_all() -> None:
    assert [count(number, "job") for number in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
    assert [part_of(0, whole, "CPU") for whole in (1, 2)] == ["0 of 1 CPU", "0 of 2 CPUs"]
