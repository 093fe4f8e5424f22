"""What the bits depend on besides spec and data, and what is fixed about it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import Ledger, Trainer
from lockstep.workers.engine.determinism import (
    COMPILED_SHAPES,
    MATH_SETTINGS,
    cpu_vendor,
    driver_version,
    fix_arithmetic,
    fix_compiler,
    hardware_class,
    seed_generators,
)
from tests.support.honest_models import Numbers, Points, sgd

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


def test_a_compiled_function_is_compiled_for_each_shape_by_itself() -> None:
    fix_arithmetic(1)
    fix_compiler()
    shapes: list[tuple[Any, ...]] = []

    def note(graph: Any, inputs: list[Any]) -> Any:
        shapes.extend(tuple(value.shape) for value in inputs if isinstance(value, Tensor))
        return graph.forward

    double = torch.compile(lambda inputs: inputs * 2, backend=note)
    for size in (12, 13, 14, 12, 13):
        double(torch.ones(size, 8))
    assert shapes == [(12, 8), (13, 8), (14, 8)]
    assert all(type(length) is int for shape in shapes for length in shape)


def test_a_function_that_is_compiled_for_too_many_shapes_fails_instead_of_going_on_uncompiled() -> None:
    fix_compiler()
    double = torch.compile(lambda inputs: inputs * 2, backend="eager")
    with pytest.raises(Exception, match="recompile_limit"):
        for size in range(2, COMPILED_SHAPES + 4):
            double(torch.ones(size))


def test_a_function_that_is_compiled_is_run_compiled_in_every_step() -> None:
    runs: list[int] = []
    was_compiled: list[bool] = []

    def counted(graph: Any, inputs: list[Any]) -> Any:
        def run(*args: Any) -> Any:
            runs.append(len(args))
            return graph.forward(*args)

        return run

    activation = torch.compile(lambda inputs: inputs.sigmoid() * inputs.std(), backend=counted)

    class Compiled(Numbers):
        def forward(self, inputs: Tensor) -> Tensor:
            before = len(runs)
            outputs = super().forward(activation(inputs))
            if inputs.device.type == "cpu" and self.training:  # and not while its operations are counted
                was_compiled.append(len(runs) > before)
            return outputs

    ledger = Ledger()
    Trainer(max_steps=3, batch_size=20, shards=2, audit="off").fit(Compiled(), Points(), sgd, ledger=ledger)
    assert was_compiled == [True] * 6
    assert ledger.flops_per_step > 0
