from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.server.settings import StartupError, available_gpus, load, loopback_address


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("LOCKSTEP_NUM_CPUS", "3")
    settings = load(listen="127.0.0.1:2", num_cpus=None)
    assert (settings.listen, settings.num_cpus) == ("127.0.0.1:2", 3)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_DATA_DIR", "")
    assert load().data_dir == Path("lockstep-data")


@pytest.mark.parametrize("text", ["127.0.0.1:50051", "localhost:1", "[::1]:0", "127.8.8.8:65535"])
def test_loopback_addresses_are_taken(text: str) -> None:
    address = loopback_address("--listen", text)
    assert str(address) == text.replace("localhost", "127.0.0.1")


@pytest.mark.parametrize("text", ["0.0.0.0:50051", "[::]:1", "192.168.0.1:1", "example.com:1"])
def test_addresses_that_others_could_reach_are_refused(text: str) -> None:
    with pytest.raises(StartupError, match=r"--listen is .*loopback addresses only.*no authentication yet"):
        loopback_address("--listen", text)


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", "127.0.0.1:", ":1", "127.0.0.1:x", "127.0.0.1:\u0663", "127.0.0.1:65536"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(StartupError, match=r"--http is .*allowed: host:port"):
        loopback_address("--http", text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_cpus": 0}, "--num-cpus is 0"),
        ({"num_gpus": -1}, "--num-gpus is -1"),
        ({"launcher_timeout_s": 0}, "--launcher-timeout-s is 0"),
        ({"warm_memory_bytes": 1 << 63}, "--warm-memory-bytes is 9223372036854775808"),
        ({"log_format": "xml"}, "--log-format is 'xml'"),
        ({"gpu_job_mapping_dir": "jobs"}, "--gpu-job-mapping-dir is 'jobs'; allowed: an absolute path"),
        ({"ray_address": "a:1", "num_cpus": 2}, "for the embedded Ray"),
        ({"ray_address": "nowhere"}, "--ray-address is 'nowhere'; allowed: host:port"),
    ],
)
def test_a_bad_setting_is_named_by_its_option(given: dict[str, object], words: str) -> None:
    with pytest.raises(StartupError, match=words):
        load(**given)


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1,3", 3)])
def test_gpus_hidden_from_us_are_not_counted(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert available_gpus() == count


def test_the_launcher_is_told_each_of_its_options_as_it_was_set() -> None:
    given = {
        "log_format": "json",
        "warm_ttl_s": 2.5,
        "warm_workers": 3,
        "warm_memory_bytes": (1 << 63) - 1,
        "data_cache_bytes": 5,
        "gpu_job_mapping_dir": "/run/gpu-jobs",
    }
    options = load(**given).launcher_options()
    assert {field.name: value for field, value in options.ListFields()} == given


def test_a_folder_that_is_not_set_is_told_to_the_launcher_as_none() -> None:
    assert load().launcher_options().gpu_job_mapping_dir == ""
