"""The import rules, each seen in a fresh process, and the shape of the tree."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.v1.job_spec_pb2 import JobSpec

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if ".migrations" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print([name for name in {forbidden!r} if name in sys.modules])
"""


def loaded(script: str) -> str:
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("lockstep.client", ["lockstep.server", "lockstep.workers", "torch", "ray", "sqlalchemy", "numpy"]),
        ("lockstep.server", ["lockstep.client", "lockstep.workers", "torch", "ray"]),
        ("lockstep.workers", ["lockstep.client", "lockstep.server", "sqlalchemy"]),
        ("lockstep.workers.engine", ["ray", "grpc", "lockstep.v1", "lockstep.client", "lockstep.server"]),
    ],
)
def test_no_part_loads_what_belongs_to_another(package: str, forbidden: list[str]) -> None:
    assert loaded(IMPORT_ALL.format(package=package, forbidden=forbidden)) == "[]"


def test_the_client_alone_is_light() -> None:
    script = "import lockstep.client, sys; print([n for n in ('yaml', 'rich', 'typer') if n in sys.modules])"
    assert loaded(script) == "[]"


def test_the_node_agent_is_light() -> None:
    script = (
        "import lockstep.workers.node.agent, sys; print([n for n in ('torch', 'numpy', 'sklearn') if n in sys.modules])"
    )
    assert loaded(script) == "[]"


def test_the_launcher_is_light() -> None:
    script = (
        "import lockstep.workers.launcher.__main__, sys; print([n for n in ('torch', 'sklearn') if n in sys.modules])"
    )
    assert loaded(script) == "[]"


def test_the_roots_are_one_namespace_package() -> None:
    for root in ("proto", "client", "server", "workers"):
        assert not (ROOT / root / "__init__.py").exists()
        assert not (ROOT / root / "lockstep" / "__init__.py").exists()


# Which package may import which, below each root. An arrow never runs up: no package imports, over others or at once,
# one that imports it. Everything may import the contract. A new edge is a decision; a note beside it says why it is
# needed where that is not plain.
ALLOWED = {
    "server": {
        "errors": "",
        "process": "errors",
        "spec": "errors process",
        "jobs": "errors",
        "scheduling": "",
        "settings": "spec",
        "data_folder": "process settings",
        "logging": "",
        "store": "errors jobs",
        "watching": "errors",
        "checkpoints": "errors jobs process store",
        "ledger": "errors process store",
        "logs": "errors watching",
        "cluster": "errors jobs process scheduling",
        "coordinator": "checkpoints cluster errors jobs ledger process scheduling spec store watching",
        "telemetry": "cluster coordinator jobs ledger",  # it listens to the coordinator
        "health": "store",
        "rpc": "checkpoints cluster coordinator errors health jobs ledger logs process scheduling settings spec store "
        "telemetry watching",
        "http": "settings telemetry",
        "application": "cluster coordinator data_folder health http logs process rpc scheduling settings spec store "
        "telemetry",
        "main": "application logging process settings",
    },
    "workers": {
        "awake_clock": "",
        "engine": "awake_clock",
        "connection": "",
        "calls": "",
        "failures": "",
        "logs": "connection",
        "registry": "",
        "models": "engine registry",
        "datasets": "engine registry",
        "optimizers": "registry",
        "training": "datasets engine models optimizers",
        "run": "engine training",
        "trained": "engine models",
        "node": "connection failures",
        "actor": "awake_clock calls connection datasets engine failures logs training",
        # of the actor the class alone, to make some
        "launcher": "actor awake_clock calls connection failures logs node",
    },
}


def edges_of(root: str) -> dict[tuple[str, str], str]:
    """Which packages of a root import which others, and a file that does."""
    base = ROOT / root / "lockstep" / root
    found = {}
    for path in sorted(base.rglob("*.py")):
        package = path.relative_to(base).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            for name in imported(node):
                parts = name.split(".")
                if parts[:2] == ["lockstep", root] and len(parts) > 2 and parts[2] != package != "__init__":
                    found[package, parts[2]] = str(path.relative_to(ROOT))
    return found


def imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module, names) if module is not None:
            return [f"{module}.{alias.name}" for alias in names]
    return []


@pytest.mark.parametrize("root", ALLOWED)
def test_packages_import_what_they_may(root: str) -> None:
    allowed = {(package, other) for package, others in ALLOWED[root].items() for other in others.split()}
    found = edges_of(root)
    wrong = [f"{found[edge]}: {edge[0]} may not import {edge[1]}" for edge in sorted(found.keys() - allowed)]
    assert not wrong
    unused = [f"{package} -> {other}: nothing needs it any more" for package, other in sorted(allowed - found.keys())]
    assert not unused


def test_the_facts_of_both_sides_import_nothing_and_the_rules_of_a_spec_only_the_contract() -> None:
    folder = ROOT / "proto" / "lockstep" / "contract"
    for path in folder.rglob("*.py"):
        names = [name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)]
        foreign = {name for name in names if name.split(".")[0] not in (*sys.stdlib_module_names, "google", "lockstep")}
        ours = {".".join(name.split(".")[1:3]) for name in names if name.startswith("lockstep.")}
        allowed = {"contract.bounds", "contract.spec", "contract.wording"} if path.parent != folder else set()
        assert not foreign, path
        assert {part for part in ours - allowed if not (allowed and part.startswith("v1."))} == set(), path


@pytest.mark.parametrize("root", ALLOWED)
def test_no_arrow_between_packages_runs_up(root: str) -> None:
    graph = {package: set(others.split()) for package, others in ALLOWED[root].items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_what_becomes_of_an_attempt_is_decided_without_threads_ray_or_a_clock() -> None:
    folder = ROOT / "workers" / "lockstep" / "workers" / "launcher" / "attempt"
    trees = [ast.parse(path.read_text()) for path in folder.glob("*.py")]
    names = {name for tree in trees for node in ast.walk(tree) for name in imported(node)}
    own = ("lockstep.contract.", "lockstep.v1.", "lockstep.workers.calls.", "lockstep.workers.launcher.attempt")
    standard = {name.split(".")[0] for name in names if not name.startswith(own)}
    assert standard <= {"collections", "dataclasses", "enum", "itertools", "typing"}


@pytest.mark.parametrize("package", ["spec", "jobs", "scheduling"])
def test_what_decides_knows_neither_loop_nor_database(package: str) -> None:
    folder = ROOT / "server" / "lockstep" / "server" / package
    names = {
        (path.name, name.split(".")[0])
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
    }
    assert not [(file, name) for file, name in sorted(names) if name in {"asyncio", "sqlalchemy", "threading"}]


def test_what_is_the_own_of_a_database_lies_in_one_file() -> None:
    base = ROOT / "server" / "lockstep" / "server"
    found = {
        (str(path.relative_to(base)), name)
        for path in base.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
    }
    assert {file for file, name in found if name.startswith(("sqlite3", "sqlalchemy.dialects"))} == {"store/sqlite.py"}
    users = {file for file, name in found if name.startswith("lockstep.server.store.sqlite")}
    assert users == {"store/dialect.py"}, "the others take these names from store/dialect.py"


@pytest.mark.parametrize("package", ["rpc", "telemetry"])
def test_nothing_reaches_through_the_coordinator(package: str) -> None:
    """What a service may ask is a method of the coordinator, or a part that it was given."""
    folder = ROOT / "server" / "lockstep" / "server" / package
    through = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and ast.unparse(node.value.value).split(".")[-1].strip("_") == "coordinator"
    ]
    assert not through


def test_what_both_sides_know_imports_nothing() -> None:
    files = sorted((ROOT / "proto" / "lockstep" / "contract").glob("*.py"))
    names = {
        name.split(".")[0]
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        for name in imported(node)
    }
    assert files
    assert names <= sys.stdlib_module_names


def test_the_engine_names_no_field_of_a_spec() -> None:
    paths = {
        f"{section.name}.{field.name}"
        for section in JobSpec.DESCRIPTOR.fields
        if section.message_type is not None
        for field in section.message_type.fields
    }
    files = sorted((ROOT / "workers" / "lockstep" / "workers" / "engine").rglob("*.py"))
    named = {
        (file.name, path) for file in files for path in paths if re.search(rf"\b{re.escape(path)}\b", file.read_text())
    }
    assert not named


def test_only_the_fleet_knows_the_class_of_the_actors() -> None:
    launcher = ROOT / "workers" / "lockstep" / "workers" / "launcher"
    knowing = [path.name for path in launcher.glob("*.py") if "lockstep.workers.actor" in path.read_text()]
    assert knowing == ["fleet.py"]


def written_by_hand() -> list[Path]:
    """All of our Python files that are no generated code."""
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in tracked.stdout.split() if "_pb2" not in name]


def test_no_file_holds_more_than_one_thing_could_need() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in written_by_hand()}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_function_outside_of_tests_is_longer_than_a_page() -> None:
    long = {}
    for path in written_by_hand():
        if "tests" not in path.relative_to(ROOT).parts:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                    lines = node.end_lineno - node.lineno + 1
                    if lines > LONGEST_FUNCTION:
                        long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert not long
