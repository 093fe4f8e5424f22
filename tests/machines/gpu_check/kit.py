"""Make the kit for a machine without a network: `make gpu-kit`. Needs a package registry.

    python -m tests.machines.gpu_check.kit [--python-version 3.12] [--arch x86_64] [--with-scipy]

Fetches the wheels of all that Lockstep needs beside torch, as pinned in constraints.txt and for the other machine's
Python, takes from Ray what is not used, strips binaries, and packs them into gpu-kit/. numpy, scipy and scikit-learn
are left out unless they are asked for: most machines with torch have them, and they take a third of the room.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
KIT = ROOT / "gpu-kit"
PROJECT = "lockstep-train[all]"
TORCH = "torch"
SCIPY = ("numpy", "scipy", "scikit-learn")
MANYLINUX = ("manylinux1", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 40)))
NOT_OF_RAY = ("rllib", "tune", "serve", "data", "llm", "train", "jars", "cpp", "include", "dashboard/client")
"""Folders of Ray that `ray start` and actors do without."""
LARGEST_BYTES = 60 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-version", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--arch", default="x86_64", help="of its processor")
    parser.add_argument("--with-scipy", action="store_true", help="numpy, scipy and scikit-learn too")
    options = parser.parse_args()
    if tuple(map(int, options.python_version.split("."))) < (3, 11):
        parser.error(f"--python-version: Lockstep needs Python 3.11 or newer, not {options.python_version}")
    left_out = () if options.with_scipy else SCIPY
    pins = pinned([name for name in needed(options.python_version) if name not in left_out])
    KIT.mkdir(exist_ok=True)
    archive = KIT / f"cp{options.python_version.replace('.', '')}-{options.arch}.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        wheels, site = Path(folder, "wheels"), Path(folder, "site")
        fetch(pins, options.python_version, options.arch, wheels)
        for wheel in sorted(wheels.iterdir()):
            unpack(wheel, site)
        lighten(site)
        about = {"python": options.python_version, "arch": options.arch, "packages": pins, "left_out": list(left_out)}
        (site / "gpu-kit.json").write_text(json.dumps(about, indent=1))
        print(f"packing {sum(file.stat().st_size for file in site.rglob('*')) / 2**20:.0f} MiB ...", flush=True)
        pack(site, archive)
    size = archive.stat().st_size
    print(f"{archive.relative_to(ROOT)}: {size / 2**20:.1f} MiB, {len(pins)} packages")
    if size > LARGEST_BYTES:
        print(f"That is more than {LARGEST_BYTES / 2**20:.0f} MiB, and may be more than travels.")


def needed(python_version: str) -> list[str]:
    """Names of the packages that the project needs on Linux with that Python, but for torch and what that needs."""
    environment = {"python_version": python_version, "python_full_version": f"{python_version}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "implementation_name": "cpython"}
    found: dict[str, set[str]] = {}

    def add(text: str) -> None:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == TORCH or (name in found and requirement.extras <= found[name]):
            return
        found[name] = found.get(name, set()) | requirement.extras
        for line in requirements(name):
            marker = Requirement(line).marker
            extras = requirement.extras or {""}
            if marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in extras):
                add(line)

    add(PROJECT)
    return sorted(name for name in found if name != canonicalize_name(Requirement(PROJECT).name))


def requirements(name: str) -> list[str]:
    """What an installed package says that it needs; one that is only needed elsewhere is not installed here."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def pinned(names: list[str]) -> dict[str, str]:
    """The versions in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==", 1) for line in lines if "==" in line)
    versions = {canonicalize_name(name): version for name, version in pins}
    return {name: versions[canonicalize_name(name)] for name in names}


def fetch(pins: dict[str, str], python_version: str, arch: str, folder: Path) -> None:
    """Download the wheels; ends the program when one is not to be had."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version, "-d", str(folder)]
    for platform in MANYLINUX:
        command += ["--platform", f"{platform}_{arch}"]
    if subprocess.run([*command, *(f"{name}=={version}" for name, version in pins.items())]).returncode:
        sys.exit(
            f"There is no such kit for Python {python_version} on {arch}; pip says above which package is missing."
        )


def unpack(wheel: Path, site: Path) -> None:
    """Install a wheel as pip does with --target, but for scripts."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", member.filename)
            if member.is_dir() or re.match(r"[^/]+\.data/", name):
                continue
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(member))
            if member.external_attr >> 16 & 0o111:
                path.chmod(0o755)


def lighten(site: Path) -> None:
    """Remove what is not used, and symbols."""
    for name in NOT_OF_RAY:
        shutil.rmtree(site / "ray" / name, ignore_errors=True)
    if shutil.which("strip") is None:
        print("There is no `strip` here (package binutils): the kit gets larger.", flush=True)
        return
    for binary in binaries(site):
        subprocess.run(["strip", "--strip-unneeded", str(binary)], stderr=subprocess.DEVNULL)


def binaries(site: Path) -> Iterator[Path]:
    for path in site.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def pack(site: Path, archive: Path) -> None:
    """One archive of everything; a higher preset takes minutes, and saves a tenth."""
    with tarfile.open(archive, "w:xz", preset=6) as tar:
        for path in sorted(site.iterdir()):
            tar.add(path, path.name)


if __name__ == "__main__":
    main()
