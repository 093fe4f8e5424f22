"""What happens around every call: parsing the request, mapping errors, counting.

Requests are parsed here and not by gRPC, which answers bytes that are no message with Python's words.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from lockstep.server.errors import LockstepError, MalformedMessage, MessageTooLarge
from lockstep.server.rpc.status import INTERNAL_WORDS, to_status
from lockstep.server.telemetry import Telemetry

T = TypeVar("T")

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# Above this gRPC refuses by itself, with words of its own and before it has taken the message in. No more than what it
# takes to say it in ours: a message that is begun and not ended holds its size in memory.
TRANSPORT_MESSAGE_BYTES = MAX_MESSAGE_BYTES + 64 * 1024

_DETAILS_KEY = "grpc-status-details-bin"

log = structlog.get_logger(__name__)

# The stubs know type parameters that the classes themselves do not have.
if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Context = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each handler once, when its method is first called."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler of the call's method."""
        path = handler_call_details.method
        if path not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # No such method: gRPC answers UNIMPLEMENTED.
                return None
            self._wrapped[path] = self._wrap(path, handler)
        return self._wrapped[path]

    def _wrap(self, path: str, handler: Any) -> Handler:
        _, service, method = path.split("/", 2)
        parse = _parser(handler.request_deserializer)
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            if inspect.isasyncgenfunction(behaviour):
                respond = self._stream(service, method, behaviour, parse, handler.request_streaming)
            else:
                respond = self._unary(service, method, behaviour, parse, handler.request_streaming)
        else:
            behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
            respond = self._unary(service, method, behaviour, parse, handler.request_streaming)
        makers: dict[tuple[bool, bool], Callable[..., Handler]] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        make = makers[(handler.request_streaming, handler.response_streaming)]
        return make(respond, request_deserializer=None, response_serializer=_serializer(handler.response_serializer))

    def _unary(self, service: str, method: str, behaviour: Any, parse: Any, streams_in: bool) -> Any:
        async def respond(request: Any, context: Any) -> Any:
            async with self._guarded(service, method, context):
                return await behaviour(_parse_all(request, parse) if streams_in else parse(request), context)

        return respond

    def _stream(self, service: str, method: str, behaviour: Any, parse: Any, streams_in: bool) -> Any:
        async def respond(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._guarded(service, method, context):
                parsed = _parse_all(request, parse) if streams_in else parse(request)
                async for response in behaviour(parsed, context):
                    yield response

        return respond

    @asynccontextmanager
    async def _guarded(self, service: str, method: str, context: Any) -> AsyncIterator[None]:
        self._telemetry.rpc_started(service, method)
        started = time.perf_counter()
        code = "CANCELLED"  # What a call is that ends in none of the ways below.
        try:
            yield
            code = "OK"
        except grpc.aio.AbortError:
            code = _code_name(context.code())
            raise
        except LockstepError as error:
            status_code, status = to_status(error)
            code = status_code.name
            details = ((_DETAILS_KEY, status.SerializeToString()),)
            await context.abort(status_code, status.message, details)
        except Exception:
            code = "INTERNAL"
            log.exception("a call failed", service=service, method=method)
            await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_WORDS)
        finally:
            self._telemetry.rpc_ended(service, method, code, time.perf_counter() - started)


def _code_name(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    names = {status.value[0]: status.name for status in grpc.StatusCode}
    return names.get(code, "UNKNOWN")


def _parser(deserialize: Any) -> Callable[[bytes], Any]:
    owner = getattr(deserialize, "__self__", None)
    descriptor = getattr(owner, "DESCRIPTOR", None)
    name = descriptor.full_name if descriptor is not None else "protobuf"

    def parse(data: bytes) -> Any:
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"the request has {len(data):,} bytes; allowed: at most {MAX_MESSAGE_BYTES:,}")
        try:
            return deserialize(data)
        except (DecodeError, UnicodeDecodeError, ValueError) as error:
            raise MalformedMessage(name) from error

    return parse


def as_written(kind: type[T], message: bytes) -> T:
    """Let the bytes of a message stand for the message in a response: one that goes to many is written once."""
    return cast("T", message)


def _serializer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda response: response if isinstance(response, bytes) else serialize(response)


async def _parse_all(requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for data in requests:
        yield parse(data)
