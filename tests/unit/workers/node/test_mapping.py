"""The files by which dcgm-exporter knows which jobs use which GPU."""

import os
import threading
from pathlib import Path

import pytest

from lockstep.workers.node.mapping import JobMapping


def read(folder: Path) -> dict[str, list[str]]:
    """What dcgm-exporter reads: the lines of files whose name is a number."""
    return {path.name: path.read_text().splitlines() for path in folder.iterdir() if path.name.isdecimal()}


def test_each_gpu_has_a_file_with_one_job_on_each_line(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    JobMapping(folder, "ours").write([(0, "job-b"), (0, "job-a"), (1, "job-a"), (0, "job-a")])
    assert read(folder) == {"0": ["job-a", "job-b"], "1": ["job-a"]}


def test_nothing_is_made_while_nobody_uses_a_gpu(tmp_path: Path) -> None:
    JobMapping(tmp_path / "maps", "ours").write([])
    assert not (tmp_path / "maps").exists()


def test_the_file_of_a_gpu_that_nobody_uses_any_more_is_empty(tmp_path: Path) -> None:
    mapping = JobMapping(tmp_path, "ours")
    mapping.write([(0, "job-a"), (1, "job-a")])
    mapping.write([(1, "job-b")])
    assert read(tmp_path) == {"0": [], "1": ["job-b"]}


def test_the_next_agent_clears_up_after_one_that_has_died(tmp_path: Path) -> None:
    JobMapping(tmp_path, "ours").write([(0, "job-a"), (1, "job-a")])
    JobMapping(tmp_path, "ours").write([(1, "job-a")])
    assert read(tmp_path) == {"0": [], "1": ["job-a"]}


def test_an_agent_that_has_died_between_note_and_file_is_cleared_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = JobMapping(tmp_path, "ours")
    mapping.write([(0, "job-a")])
    replace = Path.replace

    def die(path: Path, target: Path) -> Path:
        if target.name == "0":
            raise OSError("dies here")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(OSError, match="dies here"):
        mapping.write([(0, "job-b")])
    monkeypatch.undo()
    assert read(tmp_path) == {"0": ["job-a"]}
    JobMapping(tmp_path, "ours").write([])
    assert read(tmp_path) == {"0": []}


def test_files_of_others_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("4711\n")
    mapping = JobMapping(tmp_path, "ours")
    mapping.write([(0, "job-a"), (1, "job-a")])
    JobMapping(tmp_path, "another server").write([(2, "job-z")])
    (tmp_path / "1").write_text("4712\n")
    mapping.write([])
    assert read(tmp_path) == {"0": ["4711"], "1": ["4712"], "2": ["job-z"]}


def test_a_file_that_others_have_emptied_is_used(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    JobMapping(tmp_path, "ours").write([(0, "job-a")])
    assert read(tmp_path) == {"0": ["job-a"]}


def test_a_damaged_note_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / ".ours.json").write_text("[1")
    JobMapping(tmp_path, "ours").write([(0, "job-a")])
    assert read(tmp_path) == {"0": ["job-a"]}


def test_a_reader_never_sees_half_of_a_file(tmp_path: Path) -> None:
    mapping = JobMapping(tmp_path, "ours")
    mapping.write([(0, "job-a")])
    seen, has_written = set(), threading.Event()

    def look() -> None:
        while not has_written.is_set():
            seen.add((tmp_path / "0").read_text())

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(100):
        mapping.write([(0, "job-b"), (0, "job-c")])
        mapping.write([(0, "job-a")])
    has_written.set()
    reader.join()
    assert seen <= {"job-a\n", "job-b\njob-c\n"}


def test_what_others_put_in_the_folder_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    folder, victim = tmp_path / "maps", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    (folder / "0").symlink_to(victim)
    os.mkfifo(folder / "1")
    (folder / "2").mkdir()
    for name in ("3", "ours.json"):
        (folder / f".{name}.{os.getpid()}.draft").symlink_to(victim)
    (folder / ".ours.json").symlink_to(victim)
    JobMapping(folder, "ours").write([(number, "job-a") for number in range(4)])
    assert victim.read_text() == "precious"
    assert (folder / "0").is_symlink()
    assert (folder / "1").is_fifo()
    assert (folder / "2").is_dir()
    assert (folder / "3").read_text() == "job-a\n"
    assert not (folder / ".ours.json").is_symlink()
