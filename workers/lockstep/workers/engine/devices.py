"""The device that a process computes on: whether it can, and how much of its memory it may take."""

import torch

from lockstep.workers.engine.errors import DeviceUnusable, Parameter


def check_usable(device: torch.device) -> None:
    """Check that PyTorch computes on a device in this process.

    Raises:
        DeviceUnusable: it does not; says why and what to do.
    """
    if device.type != "cuda":
        return
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"PyTorch {torch.__version__} is built without CUDA: install a build with it on this machine"
    else:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.get_device_properties(device)
            return
        except (AssertionError, RuntimeError) as error:  # all that CUDA and torch say of it
            why = f"CUDA says: {str(error).partition(chr(10))[0].rstrip('.')}"
    raise DeviceUnusable(
        f"PyTorch cannot compute on {device}: {why}; or use CPUs (", Parameter("device", 'device="cpu"'), ")"
    )


def bound_memory(device: torch.device, share: float) -> None:
    """Let this process allocate no more of a GPU's memory than its share, so that others who share it have theirs.

    Args:
        device: the GPU; nothing is done for a CPU.
        share: 1 for all of it.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device)
