"""How tensors of a device travel over the transport: through host memory that is kept for them.

For ranks that NCCL does not serve, such as those that share a GPU. Everything is only copied, so the bits are those of
any other way.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lockstep.workers.engine.exchange.transport import Transport

ALIGNMENT_BYTES = 64


class Staging:
    """The way of one rank's tensors to the transport and back; used by one thread at a time.

    On a GPU the host memory is pinned and copies run on the current stream of whoever calls. The host waits for it
    before it hands memory to the transport. What has come may still be on its way to the GPU when `swap` returns; that
    memory is not written again before it has arrived.

    Args:
        device: where the tensors lie; a CPU has memory of the same kind twice, which serves tests.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_pinned = device.type == "cuda"
        self._outgoing = self._incoming = torch.empty(0, dtype=torch.uint8)
        self._arrived: torch.cuda.Event | None = None

    def swap(self, tensors: Mapping[int, tuple[Tensor, Tensor]], transport: Transport) -> None:
        """Send the first tensor to each rank while receiving the second from it; all are contiguous.

        Raises:
            PeerLost: one of these ranks left.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        # A tensor that goes to several ranks is copied once.
        outgoing = {_place(sent): bytes_on_device(sent) for sent, _ in tensors.values()}
        incoming = {peer: bytes_on_device(received) for peer, (_, received) in tensors.items()}
        self._outgoing, sent_parts = self._room(self._outgoing, list(outgoing.values()))
        self._incoming, received_parts = self._room(self._incoming, list(incoming.values()))
        for part, tensor in zip(sent_parts, outgoing.values(), strict=True):
            part.copy_(tensor, non_blocking=True)
        if self._is_pinned:
            torch.cuda.current_stream(self.device).synchronize()
        part_of = dict(zip(outgoing, sent_parts, strict=True))
        transport.swap(
            {
                peer: (bytes_in_host_memory(part_of[_place(tensors[peer][0])]), bytes_in_host_memory(received))
                for peer, received in zip(incoming, received_parts, strict=True)
            }
        )
        for part, tensor in zip(received_parts, incoming.values(), strict=True):
            tensor.copy_(part, non_blocking=True)
        if self._is_pinned:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(self.device))

    def _room(self, memory: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Memory with a part for each tensor, taken anew where there was too little; and the parts."""
        starts, end = [], 0
        for tensor in tensors:
            starts.append(end)
            end += -(-tensor.numel() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if end > memory.numel():
            memory = torch.empty(end, dtype=torch.uint8, pin_memory=self._is_pinned)
        return memory, [memory[start : start + t.numel()] for start, t in zip(starts, tensors, strict=True)]


def bytes_on_device(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor where it lies, uint8, (size,)."""
    return tensor.detach().view(-1).view(torch.uint8)


def bytes_in_host_memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory."""
    return memoryview(bytes_on_device(tensor).numpy())  # type: ignore[arg-type]


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes
