"""The checks for a machine with a GPU, on CPUs and as small as can be, so that they are right when somebody has one."""

import json
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from tests.machines.gpu_check import accounts, digests, gradients, graphs, healing, operations, pausing, start
from tests.machines.gpu_check.plan import Plan, smallest
from tests.machines.gpu_check.report import Row, Verdict, attempt, judge, the_same
from tests.machines.gpu_check.sections import SECTIONS

MOST_S = 480


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return smallest(tmp_path)


def verdicts(rows: list[Row]) -> set[Verdict]:
    """The verdicts; what has failed is shown whole."""
    print("\n".join(line for row in rows for line in row.lines()))
    return {row.verdict for row in rows}


@pytest.mark.parametrize("check", [digests.check, healing.check, pausing.check], ids=lambda check: check.__module__)
def test_ranks_that_exchange_through_host_memory_pass_every_check(
    plan: Plan, check: Callable[[Plan], Iterable[Row]]
) -> None:
    assert verdicts(list(check(plan))) == {Verdict.OK}


def test_gradients_are_compared_with_float64(plan: Plan) -> None:
    assert verdicts(list(gradients.check(plan))) == {Verdict.OK}


def test_graphs_are_held_against_shards_that_are_launched_call_by_call(plan: Plan) -> None:
    assert verdicts(list(graphs.check(plan))) == {Verdict.OK}


def test_the_ledger_is_held_against_the_clock(plan: Plan) -> None:
    assert verdicts(list(accounts.check(plan))) == {Verdict.OK, Verdict.NOT_RUN}


def test_a_layer_that_torch_refuses_is_as_good_as_one_that_repeats_its_bits(plan: Plan) -> None:
    class Unpooled(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            pooled, places = torch.nn.functional.max_pool2d(inputs, 2, return_indices=True)
            return torch.nn.functional.max_unpool2d(pooled, places, [2])

    class Raises(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    rows = [operations.of_one(plan, kind.__name__, kind) for kind in (torch.nn.ReLU, Unpooled, Raises)]
    assert [row.verdict for row in rows] == [Verdict.OK, Verdict.OK, Verdict.FAILED]
    assert "max_unpooling2d" in rows[1].figures["words"]
    assert "illegal memory access" in rows[2].details[0]


def test_a_gradient_that_is_wrong_is_told_with_its_parameter() -> None:
    wanted = {"weight": torch.ones(3, dtype=torch.float64), "bias": torch.ones(1, dtype=torch.float64)}
    row = gradients.compare("gradient", wanted | {"bias": torch.full((1,), 1.5)}, wanted, 1e-4)
    assert row.verdict is Verdict.FAILED
    assert row.details[0].startswith("bias: 5.00e-01")


def test_what_differs_is_printed_with_who_saw_it() -> None:
    row = the_same("mlp", {"1 rank": "aaaa", "2 ranks, rank 0": "bbbb", "2 ranks, rank 1": "aaaa"})
    assert row.verdict is Verdict.FAILED
    shown = "\n".join(row.lines())
    assert "aaaa: 1 rank; 2 ranks, rank 1" in shown
    assert "bbbb: 2 ranks, rank 0" in shown
    assert the_same("mlp", {"1 rank": "aaaa"}, expected=2).verdict is Verdict.FAILED, "somebody said nothing"


def test_a_check_that_raises_has_failed_and_says_where() -> None:
    def look() -> Row:
        raise RuntimeError("CUDA error: out of memory")

    row = attempt("mlp", look)
    assert (row.verdict, row.seen) == (Verdict.FAILED, "RuntimeError: CUDA error: out of memory")
    assert any("in look" in line for line in row.details)


def test_rows_survive_the_way_to_the_table() -> None:
    row = judge("a", False, "b", "c", ["d"], number=1.5)
    assert Row.from_json(row.to_json()) == row


def test_all_sections_together_take_at_most_eight_minutes() -> None:
    assert sum(section.budget_s for section in SECTIONS.values()) <= MOST_S


def run(folder: Path, *options: str) -> tuple[int, list[str], dict[str, object]]:
    """Exit status, lines and figures of the program."""
    figures = folder / "figures.json"
    command = [sys.executable, "-m", "tests.machines.gpu_check", "--json", str(figures), "--device", "cpu", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=start.ROOT, timeout=120)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), json.loads(figures.read_text())


def test_a_machine_without_a_gpu_is_told_so_first_and_last(tmp_path: Path) -> None:
    status, lines, figures = run(tmp_path, "--only", "telemetry")
    assert status == 0
    assert "no GPU" in lines[0]
    assert lines[-1] == lines[0]
    rows = figures["sections"]["telemetry"]  # type: ignore[index]
    assert [row["verdict"] for row in rows] == ["ok", "not run"]


VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_python_for_which_there_is_no_kit_is_told_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "cp39-x86_64.tar.xz").touch()
    with pytest.raises(SystemExit, match=rf"there are: cp39-x86_64.tar.xz.*make gpu-kit PYTHON_VERSION={VERSION}"):
        start.unpacked(tmp_path)


def test_a_kit_is_unpacked_once_and_knows_the_command_serve(tmp_path: Path) -> None:
    about = tmp_path / "gpu-kit.json"
    about.write_text(json.dumps({"packages": {"ray": "2.60.0"}}))
    name = f"cp{VERSION.replace('.', '')}-{platform.machine()}"
    with tarfile.open(tmp_path / f"{name}.tar.xz", "w:xz") as tar:
        tar.add(about, about.name)
    site = start.unpacked(tmp_path, tmp_path / "build")
    assert site == tmp_path / "build" / name
    (site / "touched").touch()
    assert start.unpacked(tmp_path, tmp_path / "build") == site
    assert (site / "touched").exists()
    (described,) = site.glob("*.dist-info")
    assert "serve = lockstep.server.main:serve" in (described / "entry_points.txt").read_text()
