"""A limit on how long a stream may be silent, which gRPC itself does not have."""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

_PARTS = 5
"""In so many parts a limit is waited for: of a pause of this process only what comes within one of them counts."""

Response = TypeVar("Response")
Message = TypeVar("Message", covariant=True)


class Stream(Protocol[Message]):
    """What a call of gRPC that yields messages can do."""

    def __next__(self) -> Message: ...
    def cancel(self) -> object: ...


class IdleLimit(Generic[Response]):
    """Reads a stream and cancels it when a message is long in coming.

    The time that the reader takes between two messages does not count, nor does the time in which this process was
    stopped, as by a snapshot of its machine. Used as a context; on leaving it the stream is
    cancelled in any case, which does nothing to one that has ended.

    Args:
        stream: the call.
        limit_s: seconds for which nothing may come.
    """

    def __init__(self, stream: Stream[Response], limit_s: float) -> None:
        self._stream, self._limit_s = stream, limit_s
        self._deadline = math.inf
        self._stopped_s = 0.0
        self._is_over = threading.Event()
        self.has_passed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="idle limit", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._stream.cancel()

    def next(self) -> Response | None:
        """The next message; None when the stream has ended.

        Raises:
            grpc.RpcError: the stream broke; `has_passed` tells whether because of this limit.
        """
        self._deadline = self._now() + self._limit_s
        try:
            return next(self._stream, None)
        finally:
            self._deadline = math.inf

    def _now(self) -> float:
        return time.monotonic() - self._stopped_s

    def _watch(self) -> None:
        # A deadline is never set to less than the limit from now, so no wait as short as a part of it oversleeps one.
        part_s = self._limit_s / _PARTS
        while True:
            began, pause_s = time.monotonic(), min(max(self._deadline - self._now(), 0.0), part_s)
            if self._is_over.wait(pause_s):
                return
            overslept_s = time.monotonic() - began - pause_s
            if overslept_s > part_s:
                self._stopped_s += overslept_s
            elif self._now() >= self._deadline:
                self.has_passed = True
                self._stream.cancel()
                return
