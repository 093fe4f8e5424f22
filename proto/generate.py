"""Generate the Python code of the contract next to its .proto files.

python proto/generate.py            # write
python proto/generate.py --check    # exit 1 when what is committed differs from what would be written
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PLUGINS = Path(sys.executable).parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Write the code of every .proto under `target`."""
    sources = sorted(ROOT.rglob("*.proto"))
    services = [path for path in sources if "\nservice " in path.read_text()]
    for kinds, paths in ((("python", "pyi"), sources), (("grpc_python", "mypy_grpc"), services)):
        options = [f"--{kind}_out={'quiet:' if kind == 'mypy_grpc' else ''}{target}" for kind in kinds]
        names = [str(path.relative_to(ROOT)) for path in paths]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *options, *names]
        subprocess.run(command, check=True, env=os.environ | {"PATH": f"{PLUGINS}{os.pathsep}{os.environ['PATH']}"})


def contents(folder: Path) -> dict[str, str]:
    """Map the relative path of every generated file to its text."""
    files = (path for pattern in GENERATED for path in folder.rglob(pattern))
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = contents(Path(folder)), contents(ROOT)
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    for name in stale:
        print(f"proto/{name} does not fit its .proto; run `make protos`", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
