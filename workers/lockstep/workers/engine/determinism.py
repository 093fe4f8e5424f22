"""The settings of a process on which bits depend."""

import os
import random
from pathlib import Path

import numpy as np
import torch

MATH_SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_CPU_ISA_HINTS",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
"""Environment variables by which math libraries choose their kernels on a CPU."""
GPU_MATH_SETTINGS = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""The same for a GPU."""
LONGEST_SETTING = 60
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def fix_arithmetic(threads: int, allows_tf32: bool = False) -> None:
    """Set all that the bits of a computation may depend on, in this process.

    Args:
        threads: number of CPU threads that one operation may use; the same on every worker, whatever the machine.
        allows_tf32: whether GPUs may multiply numbers of float32 as TF32.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when the first handle is made
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # without the import of the compiler; it is set up by `fix_compiler`
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a safeguard for bugs that costs a pass over memory
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = allows_tf32
    torch.backends.cudnn.allow_tf32 = allows_tf32
    torch.set_default_dtype(torch.float32)
    # TorchScript runs a function as it was written at first, and otherwise once it has seen it run.
    torch._C._set_graph_executor_optimize(False)


def hardware_class(device: torch.device) -> str:
    """What the bits depend on besides spec and data, in words.

    The kind of processor, the versions of the libraries that compute, and the settings in the environment that have
    them compute otherwise.
    """
    if device.type == "cuda":
        parts = [torch.cuda.get_device_name(device), *_versions_on_a_gpu()]
    else:
        parts = [f"cpu {torch.backends.cpu.get_cpu_capability()} {cpu_vendor()}".rstrip(), f"torch {torch.__version__}"]
    names = MATH_SETTINGS if device.type != "cuda" else (*MATH_SETTINGS, *GPU_MATH_SETTINGS)
    parts += [f"{name}={os.environ[name][:LONGEST_SETTING]}" for name in names if os.environ.get(name)]
    return ", ".join(parts)


def cpu_vendor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Who has made this machine's processor, by which math libraries choose kernels; "" if unknown."""
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("vendor_id", "CPU implementer"):
                return value.strip()
    except OSError:
        pass
    return ""


def driver_version(path: Path = NVIDIA_DRIVER) -> str:
    """Version of NVIDIA's kernel driver, such as "580.65.06"; "" if unknown."""
    try:
        words = path.read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def seed_generators(seed: int, device: torch.device, also_pythons: bool = False) -> None:
    """Seed the generators that layers draw from on `device`; cheaper than torch.manual_seed, which seeds them all.

    Args:
        seed: a number of 63 bits.
        device: where layers draw.
        also_pythons: seed those of `random` and NumPy too, which takes 7 us, where torch's takes 1.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    if also_pythons:
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)


def _versions_on_a_gpu() -> list[str]:
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda}
    versions["cuDNN"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if torch.distributed.is_nccl_available():
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    versions["driver"] = driver_version()
    return [f"{name} {version}" for name, version in versions.items() if version]
