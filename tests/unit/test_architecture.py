"""The import rules, each seen in a fresh process, and the shape of the tree."""

import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.server.spec import ENGINE_VERSION
from lockstep.workers import engine

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 400

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


def test_the_roots_are_one_namespace_package() -> None:
    for root in ("proto", "client", "server", "workers"):
        assert not (ROOT / root / "__init__.py").exists()
        assert not (ROOT / root / "lockstep" / "__init__.py").exists()


def test_server_and_engine_name_the_same_arithmetic() -> None:
    assert engine.ENGINE_VERSION == ENGINE_VERSION


def test_no_file_holds_more_than_one_thing_could_need() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("this is no git checkout")
    paths = [ROOT / name for name in tracked.stdout.split() if "_pb2" not in name]
    long = {path.name: lines for path in paths if (lines := len(path.read_text().splitlines())) > LONGEST_FILE}
    assert not long
