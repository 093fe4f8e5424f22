"""What README, docs and examples say is true."""

import ast
import contextlib
import dataclasses
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from lockstep.client import Client, Job, load_spec
from lockstep.client.cli import app
from lockstep.contract.failures import FailureReason
from lockstep.server.settings import Settings
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import CHOICE_RULES, CROSS_RULES, FIELD_RULES, resolve
from lockstep.workers.engine import Trainer
from lockstep.workers.engine.state.digest import digest_of
from tests.unit.test_architecture import ALLOWED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts))
ELSEWHERE = Site(ROOT, shares_files_with_workers=False)
JOB_PROTO = (ROOT / "proto" / "lockstep" / "v1" / "job.proto").read_text()
FILE_NAME = re.compile(r"[\w./-]+\.(?:py|proto|md|toml|ya?ml|json|txt|c|svg|png)")
# What users and programs write, and what Python has; no file of ours.
NO_FILE_OF_OURS = {"manifest.json", "ray.json", "server.json", "gpu-check.json", "random.py", "own.py"}
BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def first_cells(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)


def test_the_page_of_troubles_has_every_reason_of_a_failure_and_no_other() -> None:
    named = [cell for cell in first_cells(page("troubleshooting.md")) if re.fullmatch("[A-Z]+(_[A-Z]+)*", cell)]
    assert sorted(named) == sorted(FailureReason)


def test_the_contract_tells_every_reason_of_a_failure_and_no_other() -> None:
    comment = re.search(r"A stable word for programs: (.*?)string reason", JOB_PROTO, re.DOTALL)
    assert comment is not None
    assert sorted(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|INTERNAL", comment[1])) == sorted(FailureReason)


def test_the_table_of_spec_fields_names_every_rule_and_no_other() -> None:
    named = first_cells(page("spec.md").split("<!-- spec fields")[1].split("\n\n")[0])
    rules: list[Any] = [*FIELD_RULES, *CHOICE_RULES, *CROSS_RULES]
    assert set(named) == {rule.path for rule in rules}
    assert len(named) == len(set(named))


def test_the_table_of_spec_fields_is_what_the_contract_says() -> None:
    check = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert (check.returncode, check.stderr) == (0, "")


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


def test_under_torchrun_that_model_prints_its_digest_once(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(code_blocks(page("own-models.md"), "python")[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "own.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"'val_accuracy'", done.stdout)) == len(re.findall("[0-9a-f]{64}", done.stdout)) == 1


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


def tracked(pattern: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return listed.stdout.split()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_found_by_that_name(path: Path) -> None:
    """A name is a path from the root, or the end of one path and of no other."""
    files = tracked("*")
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for name in re.findall(r"`([^`\n]+)`", text):
        if FILE_NAME.fullmatch(name) and Path(name).name not in NO_FILE_OF_OURS | {"__init__.py"}:
            ends = [file for file in files if file.endswith("/" + name)]
            assert name in files or len(ends) == 1, f"{name}: {ends or 'there is no such file'}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_folder_that_a_page_names_is_there(path: Path) -> None:
    named = re.findall(r"`((?:proto|client|server|workers|tests|docs|deploy|benchmarks)/[\w./-]*/)`", path.read_text())
    assert [name for name in named if not (ROOT / name).is_dir()] == []


@pytest.mark.parametrize("root", ALLOWED)
def test_the_map_of_the_packages_is_the_table_of_imports(root: str) -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split(f"<!-- packages of {root} -->")[1].split("\n\n")[0]
    mapped = {}
    for row in table.strip().splitlines()[2:]:
        packages, _, imports = row.strip("|").split("|")
        for package in re.findall(r"`([a-z_]+)/?`", packages):
            mapped[package] = set(re.findall(r"`([a-z_]+)`", imports))
    assert mapped == {package: set(others.split()) for package, others in ALLOWED[root].items()}


def test_what_runs_before_a_commit_is_what_make_check_runs() -> None:
    rule = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    checks = [line.replace("$(BIN)/", ".venv/bin/") for line in re.findall(r"^\t(.*)$", rule, re.MULTILINE)]
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"] for hook in repo["hooks"]]
    last_release = '"$(ls proto/released/*.binpb | sort -V | tail -1)"'
    assert [
        hook.removeprefix("sh -c '").removesuffix("'").replace(last_release, "$(LAST_RELEASE)") for hook in hooks
    ] == checks


def test_the_newest_version_of_the_changelog_is_the_packages_and_has_its_release_note() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", title) for title in titles[1:])
    assert titles[1].split()[0] == version
    assert page(f"releases/{version}.md").startswith(f"# Lockstep {version}\n")


def symbols(path: Path) -> set[str]:
    """Names of classes, functions, methods and constants, or of messages, services and calls."""
    if path.suffix == ".proto":
        return set(re.findall(r"^\s*(?:message|enum|service|rpc) (\w+)", path.read_text(), re.MULTILINE))
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef():
                found |= {node.name} | {f"{node.name}.{name}" for name in bound(node.body)}
            case _:
                found |= bound([node])
    return found


def bound(nodes: list[ast.stmt]) -> set[str]:
    found = set()
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


LINKS_TO_CODE = re.compile(r"\[`([^`]+)`\]\(([^)\s]+\.(?:py|proto))\)")


def test_every_hop_in_the_life_of_a_job_is_in_the_file_that_its_link_leads_to() -> None:
    path = ROOT / "docs" / "design" / "life-of-a-job.md"
    hops = LINKS_TO_CODE.findall(path.read_text())
    assert len(hops) > 40
    wrong = [(symbol, target) for symbol, target in hops if symbol not in symbols(path.parent / target)]
    assert not wrong


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "design").glob("*.md")), ids=lambda path: path.name)
def test_every_member_that_a_design_note_names_is_in_the_file_of_its_class(path: Path) -> None:
    sources = [(ROOT / name).read_text() for name in (*tracked("*.py"), *tracked("*.proto")) if "_pb2" not in name]
    for owner, member in re.findall(r"`([A-Z]\w+)\.(\w+)(?:\([^`]*\))?`", path.read_text()):
        homes = [text for text in sources if re.search(rf"^(?:class|message|service) {owner}\b", text, re.MULTILINE)]
        assert any(re.search(rf"\b{member}\b", text) for text in homes), f"{owner}.{member}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    pages = tracked("docs/*.md")
    seen, left = set(), [ROOT / "README.md"]
    while left:
        here = left.pop()
        if here in seen:
            continue
        seen.add(here)
        names = re.findall(r"\]\(([^)\s#]+\.md)", here.read_text())
        left += [(here.parent / name).resolve() for name in names if "://" not in name]
    assert {ROOT / name for name in pages} <= seen
