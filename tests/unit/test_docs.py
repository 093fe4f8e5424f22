"""What README, docs and examples say is true."""

import contextlib
import dataclasses
import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from lockstep.client import Client, Job, load_spec
from lockstep.client.cli import app
from lockstep.server.settings import Settings
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import CHOICE_RULES, CROSS_RULES, FIELD_RULES, resolve
from lockstep.workers.engine import Trainer
from lockstep.workers.engine.state.digest import digest_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts))
ELSEWHERE = Site(ROOT, shares_files_with_workers=False)
BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def first_cells(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)


def test_the_table_of_spec_fields_names_every_rule_and_no_other() -> None:
    named = first_cells(page("spec.md").split("<!-- spec fields")[1].split("\n\n")[0])
    rules = [*FIELD_RULES, *CHOICE_RULES, *CROSS_RULES]
    assert set(named) == {rule.path for rule in rules}
    assert len(named) == len(set(named))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_spec(path: Path) -> None:
    assert resolve(load_spec(path), ELSEWHERE).name


@pytest.mark.parametrize("name", ["README.md", "docs/spec.md"])
def test_a_spec_that_a_page_shows_is_a_valid_one(name: str, tmp_path: Path) -> None:
    (block,) = code_blocks((ROOT / name).read_text(), "yaml")
    path = tmp_path / "spec.yaml"
    path.write_text(block)
    assert resolve(load_spec(path), ELSEWHERE).training.max_epochs


@pytest.fixture(scope="module")
def own_models(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the scripts of the page on models of one's own leave, each run in an empty folder."""
    blocks = code_blocks(page("own-models.md"), "python")
    left: list[dict[str, Any]] = [{"__name__": "own"} for _ in blocks]
    with contextlib.chdir(tmp_path_factory.mktemp("own")):
        for block, names in zip(blocks, left, strict=True):
            exec(block, names)
        left[0]["saved"] = torch.load("net.pt")
    return left


def test_a_model_of_your_own_trains_and_is_saved_as_its_page_says(own_models: list[dict[str, Any]]) -> None:
    names = own_models[0]
    assert names["result"].final_metrics["val_accuracy"] > 0.9
    assert digest_of(names["saved"]) == digest_of(names["net"].state_dict()) == names["result"].weights_digest


def test_a_model_of_your_own_masks_counts_and_augments_as_its_page_says(own_models: list[dict[str, Any]]) -> None:
    names = own_models[1]
    assert int(names["model"].seen) == 20 * 500
    assert names["result"].final_metrics["val_loss"] < 1.0


def test_the_page_on_own_models_names_every_argument_of_the_trainer() -> None:
    table = page("own-models.md").split("## The trainer")[1].split("## The module")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)))
    assert set(named) - {"Trainer"} == {field.name for field in dataclasses.fields(Trainer)}


def test_the_page_of_the_command_line_shows_every_command_and_no_other() -> None:
    commands = set(typer.main.get_command(app.build()).commands)  # type: ignore[attr-defined]
    shown = set(re.findall(r"^(?:\$ )?lockstep ([a-z]+)", page("command-line.md"), re.MULTILINE))
    assert shown | {"serve"} == commands | {"serve"}


@pytest.mark.parametrize("one", [Client, Job])
def test_the_page_of_the_sdk_names_every_call(one: type) -> None:
    calls = [name for name, member in vars(one).items() if inspect.isfunction(member) and not name.startswith("_")]
    text = page("python.md")
    assert [name for name in calls if f"`{name}(" not in text] == []


def test_the_table_of_settings_has_every_one_with_its_default() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| ([^|]*) \|", page("operation.md"), re.MULTILINE)
    stated = {name.replace("-", "_"): default.strip().strip("`") for name, default in rows}
    assert list(stated) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        number, _, unit = stated[name].partition(" ")
        if isinstance(field.default, int | float):
            assert float(number.replace(",", "")) * BYTES.get(unit, 1) == field.default, name
        elif field.default is not None:
            assert stated[name].removeprefix("./") == str(field.default), name


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    tracked = subprocess.run(["git", "ls-files", "docs/*.md"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("this is no git checkout")
    seen, left = set(), [ROOT / "README.md"]
    while left:
        here = left.pop()
        if here in seen:
            continue
        seen.add(here)
        names = re.findall(r"\]\(([^)\s#]+\.md)", here.read_text())
        left += [(here.parent / name).resolve() for name in names if "://" not in name]
    assert {ROOT / name for name in tracked.stdout.split()} <= seen
