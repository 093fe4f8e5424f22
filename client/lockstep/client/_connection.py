"""Calls to one server: deadlines, retries, and streams that go on where they broke."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar, cast

import grpc
from grpc import StatusCode

from lockstep.client._idle_limit import IdleLimit
from lockstep.client.errors import DeadlineExceeded, InvalidRequest, LockstepError, from_rpc_error

Request = TypeVar("Request")
Response = TypeVar("Response")

UNARY_TIMEOUT_S = 10.0
# How long a download may be silent: a server may have to fetch the file from elsewhere first.
IDLE_TIMEOUT_S = 60.0
# A client that has never had an answer most likely has a wrong address: it says so soon. One that has sits out a
# restart of its server, and as long after each break of a stream, however many there have been.
FIRST_CONTACT_S = 2.0
RECONNECT_S = 60.0
MAX_RESPONSE_BYTES = 64 << 20

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# A server that shuts down may end its streams with CANCELLED.
_STREAM_BREAKS = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
_LOOPBACK = ("127.", "localhost", "[::1]", "unix:")


class Patience:
    """Decides how long to go on trying, and pauses between two tries: twice as long each time, with jitter."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.reset()

    def reset(self) -> None:
        """Begin anew: the server has answered."""
        self._start = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S

    def pause(self, limit_s: float, until: float = math.inf) -> bool:
        """Wait before the next try; False when there shall be none.

        Args:
            limit_s: seconds to go on trying, if less than this object's own.
            until: time.monotonic() at which waiting ends in any case.
        """
        pause_s = self._pause_s * random.uniform(0.5, 1.0)
        now = time.monotonic()
        if now + pause_s >= self._start + min(limit_s, self._limit_s):
            return False
        time.sleep(max(0.0, min(pause_s, until - now)))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True


class Connection:
    """A channel to one server. Safe to share between threads."""

    def __init__(self, target: str, token: str | None) -> None:
        if token and not (token.isascii() and token.isprintable()):
            raise LockstepError(
                "the token holds a line end or another character that cannot be sent; is it copied whole?"
            )
        self.target = target
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._was_reached = threading.Event()
        self._is_closed = False
        self.channel = grpc.insecure_channel(target, options=_channel_options(target))

    def close(self) -> None:
        self._is_closed = True
        self.channel.close()

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        invalid_argument: type[InvalidRequest] = InvalidRequest,
    ) -> Response:
        """Call and return the response; every method of the contract may be repeated, so it is while none answers.

        Raises:
            LockstepError: the call failed, or no answer came within 10 s.
        """
        self._check_open()
        deadline = time.monotonic() + UNARY_TIMEOUT_S
        patience = Patience(UNARY_TIMEOUT_S)
        while True:
            try:
                remaining_s = deadline - time.monotonic()
                response = method(request, timeout=remaining_s, metadata=self._metadata)
            except grpc.RpcError as error:
                self._note(error)
                may_repeat = _code(error) is StatusCode.UNAVAILABLE
                if not may_repeat or not patience.pause(self._try_for_s()):
                    raise self._translate(error, invalid_argument) from error
            else:
                self._was_reached.set()
                return response

    def follow(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        next_request: Callable[[], Request],
        has_ended: Callable[[], bool] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Iterator[Response]:
        """Yield a stream's messages; when it breaks, open it again where it stood.

        Args:
            method: the streaming call.
            next_request: makes the request that goes on after the last message yielded.
            has_ended: whether the last message yielded was the last of all. Default: a stream that ends without an
                error has ended.
            timeout_s: seconds for the whole; None for no limit: a dead connection is found by keepalive.

        Raises:
            DeadlineExceeded: the stream has not ended within `timeout_s`.
            LockstepError: the call failed, or the server did not come back.
        """
        self._check_open()
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        patience = Patience(RECONNECT_S)
        while True:
            remaining_s = None if timeout_s is None else max(deadline - time.monotonic(), 0.0)
            stream = method(next_request(), timeout=remaining_s, metadata=self._metadata)
            failure: LockstepError | None = None
            try:
                for message in stream:
                    self._was_reached.set()
                    patience.reset()
                    yield message
            except grpc.RpcError as error:
                self._note(error)
                failure = self._translate(error)
                failure.__cause__ = error
                if _code(error) not in _STREAM_BREAKS or self._is_closed:
                    raise failure from error
            finally:
                stream.cancel()
            if has_ended() if has_ended else failure is None:
                return
            if not patience.pause(self._try_for_s(), until=deadline):
                raise failure or LockstepError(f"the server at {self.target} ended a stream before its end")

    def read(
        self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> Generator[Response, None, None]:
        """Yield the messages of a stream that cannot go on once it broke; it is repeated until its first message.

        Raises:
            DeadlineExceeded: nothing came for 60 s. The whole may take as long as it takes.
            LockstepError: the call failed, or broke.
        """
        self._check_open()
        patience = Patience(UNARY_TIMEOUT_S)
        while True:
            has_begun = False
            with IdleLimit(method(request, metadata=self._metadata), IDLE_TIMEOUT_S) as stream:
                try:
                    while (message := stream.next()) is not None:
                        self._was_reached.set()
                        has_begun = True
                        yield message
                    return
                except grpc.RpcError as error:
                    self._note(error)
                    if stream.has_passed:
                        silence = f"the server at {self.target} sent nothing for {IDLE_TIMEOUT_S:g} s"
                        raise DeadlineExceeded(silence) from error
                    may_repeat = not has_begun and _code(error) is StatusCode.UNAVAILABLE
                    if not may_repeat or not patience.pause(self._try_for_s()):
                        raise self._translate(error) from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise LockstepError("this client is closed")

    def _note(self, error: grpc.RpcError) -> None:
        if _code(error) not in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED):
            self._was_reached.set()

    def _try_for_s(self) -> float:
        return RECONNECT_S if self._was_reached.is_set() else FIRST_CONTACT_S

    def _translate(
        self, error: grpc.RpcError, invalid_argument: type[InvalidRequest] = InvalidRequest
    ) -> LockstepError:
        return from_rpc_error(
            error, target=self.target, was_reached=self._was_reached.is_set(), invalid_argument=invalid_argument
        )


def _code(error: grpc.RpcError) -> StatusCode:
    return cast("grpc.Call", error).code()


def _channel_options(target: str) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
        # Retries are made here, where they can be told of and bounded, not in grpc.
        ("grpc.enable_retries", 0),
    ]
    if target.startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's own loopback
    return options
