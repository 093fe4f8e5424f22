"""Start the checks with the python3 of a machine that has torch: `make gpu-check`.

What is missing beside torch comes from the kit in gpu-kit/, which is unpacked below build/ and put on PYTHONPATH.
Nothing is installed. Needs nothing but Python itself.
"""

import json
import os
import platform
import re
import shutil
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KITS, UNPACKED = ROOT / "gpu-kit", ROOT / "build" / "gpu-kit"
SOURCES = ("proto", "client", "server", "workers")
NEEDED = ("ray", "grpc", "google.protobuf", "sqlalchemy", "alembic", "structlog", "typer", "rich", "psutil", "pynvml")
OF_THE_MACHINE = ("torch", "numpy", "sklearn")
OLDEST_PYTHON = (3, 11)


def main() -> None:
    if sys.version_info < OLDEST_PYTHON:
        refuse(f"Lockstep needs Python 3.11 or newer, and {sys.executable} is {platform.python_version()}.")
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in (*missing(), os.environ.get("PYTHONPATH")) if path)
    arguments = [sys.executable, "-m", "tests.machines.gpu_check", *sys.argv[1:]]
    os.chdir(ROOT)
    os.execve(sys.executable, arguments, environment)


def missing() -> list[str]:
    """Folders to be put on PYTHONPATH."""
    if not is_there("torch"):
        refuse(f"{sys.executable} has no torch. Take a Python that has it: make gpu-check PYTHON=/path/to/python3")
    if is_there("lockstep.server") and all(map(is_there, NEEDED)):
        return []
    site = unpacked()
    sys.path.insert(0, str(site))
    absent = [name for name in (*NEEDED, *OF_THE_MACHINE) if not is_there(name)]
    if absent == ["sklearn"]:
        print("scikit-learn is not here: jobs on the digits are not run.", flush=True)
    elif absent:
        refuse(f"These are neither on this machine nor in the kit: {', '.join(absent)}. Make it with WITH_SCIPY=1.")
    return [*(str(ROOT / source) for source in SOURCES), str(site)]


def unpacked(kits: Path = KITS, into: Path = UNPACKED) -> Path:
    """The folder of the kit for this Python, unpacked once."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    archive = kits / f"cp{version.replace('.', '')}-{platform.machine()}.tar.xz"
    site = into / archive.name.removesuffix(".tar.xz")
    if not archive.is_file():
        there = ", ".join(sorted(path.name for path in kits.glob("*.tar.xz"))) or "none"
        refuse(
            f"There is no kit for this Python, {kits.name}/{archive.name} (there are: {there}). Where there is a "
            f"package registry, run: make gpu-kit PYTHON_VERSION={version} ARCH={platform.machine()}"
        )
    stamp = site / ".unpacked"
    known = f"{archive.stat().st_mtime_ns} {archive.stat().st_size}"
    if not stamp.is_file() or stamp.read_text() != known:
        print(f"unpacking {kits.name}/{archive.name} ...", flush=True)
        shutil.rmtree(site, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(site, filter="tar")
        stamp.write_text(known)
    packages = json.loads((site / "gpu-kit.json").read_text())["packages"]
    print(f"with {len(packages)} packages from {kits.name}/{archive.name}", flush=True)
    describe_lockstep(site)
    return site


def describe_lockstep(site: Path) -> None:
    """Write down what an installation of Lockstep would: its name and version, and that `lockstep serve` exists."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = re.sub(r"[-_.]+", "_", project["name"])
    folder = site / f"{name}-{project['version']}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


def is_there(name: str) -> bool:
    """Whether a module can be found."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # what it belongs to is missing
        return False


def refuse(words: str) -> None:
    sys.exit(f"gpu-check: {words}")


if __name__ == "__main__":
    main()
