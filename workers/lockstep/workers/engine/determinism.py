"""The settings of a process on which bits depend."""

import os

import torch


def fix_arithmetic(threads: int) -> None:
    """Set all that the bits of a computation may depend on, in this process.

    Args:
        threads: number of CPU threads that one operation may use; the same on every worker, whatever the machine.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when the first handle is made
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a safeguard for bugs that costs a pass over memory
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_default_dtype(torch.float32)


def hardware_class(device: torch.device) -> str:
    """What the bits depend on besides spec and data, in words: the kind of processor and the version of torch."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, torch {torch.__version__.split('+')[0]}"


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that layers draw from on `device`; cheaper than torch.manual_seed, which seeds them all."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
