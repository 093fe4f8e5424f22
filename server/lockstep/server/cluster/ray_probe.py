"""Whether a Ray answers at an address, asked without Ray."""

from __future__ import annotations

import grpc

# The question that Ray's own health check asks of its control store.
_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_TIMEOUT_S = 5.0
_NO_RAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED)


async def ray_answers(address: str) -> bool:
    """Say within some seconds whether a Ray's control store is there; it may want another token than ours.

    Args:
        address: host:port.
    """
    # No proxy leads to a cluster: Ray uses none either.
    async with grpc.aio.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
            await ask(b"", timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code() not in _NO_RAY
    return True
