from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lockstep.server.telemetry.page import KeptPage, StartResponse


class Maker:
    """Makes pages that are numbered, by so much work."""

    def __init__(self, cpu_s: float) -> None:
        self.made, self._cpu_s = 0, cpu_s
        self.fails = False

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if self.fails:
            raise TimeoutError
        self.made += 1
        until = time.thread_time() + self._cpu_s
        while time.thread_time() < until:
            continue
        start_response("200 OK", [("Content-Type", environ.get("HTTP_ACCEPT", ""))])
        return [str(self.made).encode()]


def ask(page: KeptPage, **environ: str) -> tuple[str, bytes]:
    told: list[Any] = []
    body = b"".join(page(dict(environ), lambda *given: told.extend(given)))
    return told[1][0][1], body


def test_many_who_ask_for_a_dear_page_at_once_share_it() -> None:
    maker = Maker(cpu_s=0.1)
    page = KeptPage(maker)
    together = threading.Barrier(20)

    def scrape(_: int) -> bytes:
        together.wait()
        return ask(page)[1]

    with ThreadPoolExecutor(20) as pool:
        bodies = list(pool.map(scrape, range(20)))
    assert maker.made < 10
    assert set(bodies) <= {str(number).encode() for number in range(1, maker.made + 1)}


def test_a_page_that_is_cheap_is_always_as_things_stand() -> None:
    maker = Maker(cpu_s=0.0)
    page = KeptPage(maker)
    assert [ask(page)[1] for _ in range(3)] == [b"1", b"2", b"3"]


def test_each_gets_the_page_that_was_asked_for() -> None:
    page = KeptPage(Maker(cpu_s=0.1))
    assert ask(page, HTTP_ACCEPT="text/plain")[0] == "text/plain"
    assert ask(page, HTTP_ACCEPT="application/openmetrics-text")[0] == "application/openmetrics-text"
    for number in range(100):
        assert ask(page, HTTP_ACCEPT="a", QUERY_STRING=str(number % 2))[0] == "a"


def test_a_page_that_cannot_be_made_is_tried_again() -> None:
    maker = Maker(cpu_s=0.0)
    page = KeptPage(maker)
    maker.fails = True
    with pytest.raises(TimeoutError):
        ask(page)
    maker.fails = False
    assert ask(page)[1] == b"1"
