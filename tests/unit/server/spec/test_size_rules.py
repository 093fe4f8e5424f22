from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lockstep.contract import idx
from lockstep.contract.spec.builtin import BUILTINS
from lockstep.server.spec.size_rules import points_of
from lockstep.server.spec.validation import resolve
from tests.support.specs import DIGITS, LENET, SITE, SYNTHETIC, spec_of, violations_of

SEES_FILES = replace(SITE, shares_files_with_workers=True)


@pytest.mark.parametrize("is_gzipped", [False, True])
def test_the_inputs_of_images_count_among_the_weights(tmp_path: Path, is_gzipped: bool) -> None:
    for name in idx.FILES:
        data = struct.pack(">4I", 0x803, 1_000, 200, 300) + bytes(60_000)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data)) if is_gzipped else (tmp_path / name).write_bytes(
            data
        )
    spec = spec_of(LENET, model={"mlp": {"hidden_units": [65_536]}}, data={"idx": {"root": str(tmp_path)}})
    [violation] = violations_of(spec, SEES_FILES)
    assert violation.field == "model.mlp.hidden_units"
    assert "makes 3,932,225,536 weights, with 60,000 inputs; allowed: at most 1,000,000,000" in violation.message
    resolve(spec, SITE)  # the files are not seen from here


@pytest.mark.parametrize("is_gzipped", [False, True])
def test_a_batch_above_the_images_is_refused_where_the_files_are_seen(tmp_path: Path, is_gzipped: bool) -> None:
    for name in idx.FILES:
        data = struct.pack(">4I", 0x803, 600, 28, 28)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data)) if is_gzipped else (tmp_path / name).write_bytes(
            data
        )
    files = {"idx": {"root": str(tmp_path)}}
    resolve(spec_of(LENET, data=files, training__batch_size=600), SEES_FILES)
    [violation] = violations_of(spec_of(LENET, data=files, training__batch_size=601), SEES_FILES)
    assert violation.message == (
        "training.batch_size is 601; allowed: at most 600, the number of training examples; take a smaller batch"
    )
    resolve(spec_of(LENET, data=files, training__batch_size=601), SITE)


@pytest.mark.parametrize("data", [b"", b"hello", struct.pack(">4I", 7, 1, 60_000, 60_000), b"\x1f\x8b"])
def test_files_that_are_no_images_are_left_to_the_workers(tmp_path: Path, data: bytes) -> None:
    for name in idx.FILES:
        (tmp_path / f"{name}.gz").write_bytes(data)
    resolve(spec_of(LENET, model={"mlp": {}}, data={"idx": {"root": str(tmp_path)}}), SEES_FILES)


def test_the_facts_of_the_bundled_data_are_those_of_the_data() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    for name, facts in BUILTINS.items():
        inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
        assert inputs.shape == (facts.size, facts.inputs)
        assert facts.outputs == (1 if name == "diabetes" else len(set(targets)))


@pytest.mark.parametrize(
    ("training", "points"),
    [
        ({"max_steps": 100, "log_every_steps": 10, "evaluate_every_steps": 50}, 6 * 10 + 2 * 2),
        ({"max_steps": 101, "log_every_steps": 10, "evaluate_every_steps": 50}, 6 * 11 + 2 * 3),
        ({"max_epochs": 3, "batch_size": 1_000, "log_every_steps": 1}, 6 * 3 + 2 * 3),
    ],
)
def test_the_points_of_a_job_are_counted_before_it_runs(training: dict[str, Any], points: int) -> None:
    spec = resolve(spec_of(SYNTHETIC, training=training), SITE)
    assert points_of(spec) == points
    resolve(spec, replace(SITE, points_per_job=points))
    [violation] = violations_of(spec, replace(SITE, points_per_job=points - 1))
    assert violation.field == "training.log_every_steps"
    assert f"up to {points:,} metric points" in violation.message


def test_points_are_counted_of_images_when_the_steps_are_known() -> None:
    site = replace(SITE, points_per_job=1_000)
    resolve(spec_of(LENET), site)
    spec = spec_of(LENET, training={"max_steps": 10_000, "log_every_steps": 1})
    [violation] = violations_of(spec, site)
    assert "up to 60,000 metric points" in violation.message
    assert resolve(spec_of(DIGITS), site)
