import subprocess
import sys


def modules_after(code: str) -> set[str]:
    """Names of all modules, and of their packages, in a fresh process after some code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    return names | {name.partition(".")[0] for name in names}


def test_importing_the_client_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "yaml", "rich", "typer", "click", "sqlalchemy", "alembic", "numpy", "pydantic"}
    heavy |= {"safetensors", "fsspec"}
    assert modules_after("import lockstep.client") & heavy == set()


def test_the_client_and_its_command_line_load_neither_the_server_nor_the_workers() -> None:
    loaded = modules_after("import lockstep.client.cli.describe, lockstep.client.progress")
    assert "lockstep.client.cli.describe" in loaded
    assert loaded & {"lockstep.server", "lockstep.workers", "torch", "ray", "sqlalchemy"} == set()


def test_the_command_line_draws_on_rich_and_yaml_only_when_it_needs_them() -> None:
    assert modules_after("import lockstep.client.cli") & {"rich", "yaml"} == set()


def test_every_public_name_is_there() -> None:
    import lockstep.client

    assert all(hasattr(lockstep.client, name) for name in lockstep.client.__all__)
    assert sorted(lockstep.client.__all__) == lockstep.client.__all__
