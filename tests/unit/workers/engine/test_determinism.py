"""What the bits depend on besides spec and data, and what is fixed about it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine.determinism import (
    MATH_SETTINGS,
    cpu_vendor,
    driver_version,
    fix_arithmetic,
    hardware_class,
    seed_generators,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_class_of_a_cpu_tells_its_kind_and_the_version_that_computes() -> None:
    told = hardware_class(CPU)
    assert told.startswith(f"cpu {torch.backends.cpu.get_cpu_capability()} ")
    assert cpu_vendor() in told
    assert f"torch {torch.__version__}" in told


@pytest.mark.parametrize("name", MATH_SETTINGS)
def test_a_setting_that_has_a_library_compute_otherwise_is_another_class(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in MATH_SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    plain = hardware_class(CPU)
    monkeypatch.setenv(name, "AVX2")
    assert hardware_class(CPU) == f"{plain}, {name}=AVX2"
    monkeypatch.setenv(name, "x" * 500)
    assert len(hardware_class(CPU)) < len(plain) + 100


def test_the_class_of_a_gpu_tells_all_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    versions = f"torch {torch.__version__}, CUDA 13.0, cuDNN 91002, NCCL 2.27.5"
    assert hardware_class(GPU).startswith(f"NVIDIA H100 80GB HBM3, {versions}")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert hardware_class(GPU).endswith(", NVIDIA_TF32_OVERRIDE=0")
    assert "NVIDIA_TF32_OVERRIDE" not in hardware_class(CPU)


def test_the_version_of_the_driver_is_read_where_the_kernel_tells_it(tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12.3.0\n"
    )
    assert driver_version(version) == "580.65.06"


def test_what_a_machine_does_not_tell_is_left_out(tmp_path: Path) -> None:
    assert driver_version(tmp_path / "none") == cpu_vendor(tmp_path / "none") == ""
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    assert cpu_vendor(arm) == "0x41"


def test_a_seed_decides_what_every_generator_draws() -> None:
    def draws() -> tuple[Any, ...]:
        seed_generators(1 << 62, CPU, also_pythons=True)
        return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()

    first = draws()
    random.gauss(0, 1)
    np.random.randn()
    assert draws() == first


class Scripted(nn.Module):
    """Operations that TorchScript runs otherwise once it has seen them run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 100), nn.Linear(100, 7)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.first(inputs))
        hidden = hidden * torch.tanh(hidden) + torch.rsqrt(hidden + 1.0)
        hidden = torch.layer_norm(hidden, [100])
        return torch.log_softmax(self.second(hidden), 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_gives_the_same_bits_however_often_it_has_run() -> None:
    fix_arithmetic(1)
    torch.manual_seed(0)
    module: Any = torch.jit.script(Scripted())
    seen = []
    for size in (13, 13, 12, 13, 13):
        module.zero_grad()
        inputs = torch.randn(size, 64, generator=torch.Generator().manual_seed(size))
        outputs = module(inputs)
        (outputs.logsumexp(0) + outputs.std(0) * outputs.mean()).sum().backward()
        if size == 13:
            seen.append([outputs.detach().clone(), *(parameter.grad.clone() for parameter in module.parameters())])
    for later in seen[1:]:
        assert all(torch.equal(one, other) for one, other in zip(seen[0], later, strict=True))
