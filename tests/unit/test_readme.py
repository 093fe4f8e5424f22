"""What README and examples say is true."""

import re
from pathlib import Path

import pytest

from lockstep.client import load_spec
from lockstep.server.rules import Site
from lockstep.server.validation import CHOICE_RULES, CROSS_RULES, FIELD_RULES, resolve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ELSEWHERE = Site(ROOT, shares_files_with_workers=False)


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_table_of_spec_fields_names_every_rule_and_no_other() -> None:
    table = README.split("<!-- spec fields")[1].split("\n\n")[0]
    named = re.findall(r"^\| `([a-z_.]+)` \|", table, re.MULTILINE)
    rules = [*FIELD_RULES, *CHOICE_RULES, *CROSS_RULES]
    assert set(named) == {rule.path for rule in rules}
    assert len(named) == len(set(named))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_spec(path: Path) -> None:
    assert resolve(load_spec(path), ELSEWHERE).name


def test_the_spec_in_the_readme_is_a_valid_one(tmp_path: Path) -> None:
    (block,) = code_blocks("yaml")
    path = tmp_path / "spec.yaml"
    path.write_text(block)
    assert resolve(load_spec(path), ELSEWHERE).training.max_epochs == 2


def test_a_model_of_your_own_trains_as_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in code_blocks("python") if "class Blobs" in block]
    exec(block, {"__name__": "readme"})
    accuracy = re.search(r"'val_accuracy': ([\d.]+)", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9
