"""Where checkpoints may lie: what can be reached from here, and what the operator allows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fsspec.registry import known_implementations

from lockstep.server.settings import StartupError, load
from lockstep.server.spec import checkpoint_rules
from lockstep.server.spec.validation import resolve
from tests.support.specs import DIGITS, SITE, spec_of, violations_of


def test_a_store_whose_package_is_missing_is_refused_with_the_name_of_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(checkpoint_rules, "is_installed", lambda package: asked.append(package))
    violations = violations_of(spec_of(DIGITS, recovery__checkpoint_uri="s3://b/x", init_from__uri="gs://b"))
    assert [(violation.field, violation.message.partition(";")[0]) for violation in violations] == [
        (
            "recovery.checkpoint_uri",
            'recovery.checkpoint_uri is "s3://b/x", which needs the package s3fs, and the server does not have it',
        ),
        ("init_from.uri", 'init_from.uri is "gs://b", which needs the package gcsfs, and the server does not have it'),
    ]
    assert asked == ["s3fs", "gcsfs"]


def test_each_package_reaches_what_it_is_named_for() -> None:
    for scheme, package in checkpoint_rules.STORES.items():
        known = known_implementations.get(scheme, {})
        assert known or scheme == "abfss", "which adlfs brings along itself"
        assert package in known.get("err", package), known


def test_a_folder_without_a_checkpoint_is_refused_where_server_and_workers_share_files(tmp_path: Path) -> None:
    site = dataclasses.replace(SITE, shares_files_with_workers=True)
    good = tmp_path / "step-000000000200"
    good.mkdir()
    (good / "manifest.json").write_text("{}")
    for uri in (str(good), f"file://{good}"):
        resolve(spec_of(DIGITS, init_from__uri=uri), site)
    for uri in (str(tmp_path), f"{tmp_path}/none", f"file://{tmp_path}/none", f"{good}/manifest.json"):
        [violation] = violations_of(spec_of(DIGITS, init_from__uri=uri), site)
        words = f'init_from.uri is "{uri}", which is no folder of a checkpoint that can be read; '
        assert violation.message[:60] == words[:60]
        resolve(spec_of(DIGITS, init_from__uri=uri), SITE)
    outside = dataclasses.replace(site, checkpoint_roots=("/data",))
    [violation] = violations_of(spec_of(DIGITS, init_from__uri=f"{tmp_path}/none"), outside)
    assert "folders below /data" in violation.message


@pytest.mark.parametrize(
    ("folder", "is_allowed"),
    [
        ("/data/ckpt", True),
        ("/data/ckpt/team/x", True),
        ("file:///data/ckpt/x", True),
        ("/data//ckpt/./x", True),
        ("/data/ckpt2", False),
        ("/data", False),
        ("/data/ckpt/../secret", False),
        ("/etc", False),
        ("s3://bucket/a/b", True),
        ("s3://bucket/ab", False),
        ("s3://other/a", False),
        ("/bucket/a", False),
    ],
)
def test_an_operator_can_say_where_checkpoints_may_lie(
    folder: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_rules, "is_installed", lambda package: True)
    site = dataclasses.replace(SITE, checkpoint_roots=("/data/ckpt/", "s3://bucket/a"))
    resolve(spec_of(DIGITS), site)
    for name in ("recovery__checkpoint_uri", "init_from__uri"):
        spec = spec_of(DIGITS, **{name: folder})
        if is_allowed:
            resolve(spec, site)
        else:
            [violation] = violations_of(spec, site)
            assert "folders below /data/ckpt/, s3://bucket/a; choose one of them" in violation.message


def test_the_operators_folders_are_given_with_commas_between_them_and_must_be_folders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load().checkpoint_roots is None
    assert load(checkpoint_roots="/data/ckpt,s3://bucket/a").checkpoint_roots == ("/data/ckpt", "s3://bucket/a")
    monkeypatch.setenv("LOCKSTEP_CHECKPOINT_ROOTS", "/data")
    assert load().checkpoint_roots == ("/data",)
    for wrong in ("data", "memory://x", "/data,s3:/x"):
        with pytest.raises(StartupError, match=r"--checkpoint-roots names .*; allowed: an absolute path"):
            load(checkpoint_roots=wrong)
