"""What README, docs and examples say is true."""

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from lockstep.client import Client, Job, load_spec
from lockstep.client.cli import app
from lockstep.server.settings import Settings
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import CHOICE_RULES, CROSS_RULES, FIELD_RULES, resolve

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
    rules: list[Any] = [*FIELD_RULES, *CHOICE_RULES, *CROSS_RULES]
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


def test_a_model_of_your_own_trains_as_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in code_blocks(README, "python") if "class Blobs" in block]
    exec(block, {"__name__": "readme"})
    accuracy = re.search(r"'val_accuracy': ([\d.]+)", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9


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
