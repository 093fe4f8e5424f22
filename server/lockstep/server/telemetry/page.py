"""The page of /metrics, made once for all who ask at the same time, and kept for a moment when it is dear."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_DEAR_S = 0.05
"""CPU time from which on a page is kept: on a small server it is always as things stand."""
_KEPT_S = 1.0
_MOST_KEPT = 16
_PATIENCE_S = 10.0

StartResponse = Callable[..., Any]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


@dataclass(frozen=True)
class _Page:
    status: str
    headers: list[tuple[str, str]]
    body: list[bytes]
    kept_until: float


class KeptPage:
    """A WSGI application around the one that makes the page.

    Args:
        make: writes the page, by the headers and the query that it was asked with.
    """

    def __init__(self, make: App) -> None:
        self._make = make
        self._making = threading.Lock()
        self._pages: dict[tuple[str, ...], _Page] = {}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the page.

        Raises:
            TimeoutError: others have asked for it before, and it is not made for them either.
        """
        wanted = tuple(environ.get(name, "") for name in ("HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING", "QUERY_STRING"))
        if not self._making.acquire(timeout=_PATIENCE_S):
            raise TimeoutError
        try:
            page = self._pages.get(wanted)
            if page is None or time.monotonic() >= page.kept_until:
                page = self._new_page(environ)
                self._pages.pop(wanted, None)
                while len(self._pages) >= _MOST_KEPT:
                    del self._pages[next(iter(self._pages))]
                self._pages[wanted] = page
        finally:
            self._making.release()
        start_response(page.status, page.headers)
        return page.body

    def _new_page(self, environ: dict[str, Any]) -> _Page:
        told: list[Any] = []
        cpu_s = time.thread_time()
        body = list(self._make(environ, lambda *given: told.extend(given)))
        is_dear = time.thread_time() - cpu_s >= _DEAR_S
        return _Page(told[0], told[1], body, time.monotonic() + _KEPT_S if is_dear else 0.0)
