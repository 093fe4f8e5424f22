"""What panels show when jobs end, ranks leave and nodes fall silent, as promtool computes it."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.support.boards import RULE_FILES, queries
from tests.support.prometheus import promtool

GPU = 'node="gpu-1", gpu="0", uuid="GPU-0"'
INFO = {'lockstep_job_info{job_id="job-a", name="resnet", device="gpu"}': "1x200"}


def check(folder: Path, panel: str, series: Mapping[str, str], shown: Mapping[str, Mapping[str, float]]) -> None:
    """Check what a panel shows, by time.

    Args:
        folder: for what promtool reads.
        panel: board, title and letter of the query.
        series: a sample every 15 seconds, in promtool's notation.
        shown: by time, the values of the series that the query returns, rounded to thousandths.
    """
    (query,) = [query for query in queries() if str(query) == panel]
    expr = query.with_values("job-a" if query.board == "job" else ".*")
    cases = [
        {
            "expr": f"round({expr}, 0.001)",
            "eval_time": at,
            "exp_samples": [{"labels": key, "value": some[key]} for key in some],
        }
        for at, some in shown.items()
    ]
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": cases,
    }
    order = ["lockstep-jobs", "lockstep-devices", "lockstep-service"]
    rule_files = [str(path) for path in RULE_FILES]
    content = {"rule_files": rule_files, "evaluation_interval": "15s", "group_eval_order": order, "tests": [test]}
    path = folder / "panel.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_time_of_the_ranks_adds_up_to_all_of_it_after_one_has_left(tmp_path: Path) -> None:
    series = {
        'lockstep_phase_seconds_total{job_id="job-a", rank="0", phase="forward"}': "0+12x40",
        'lockstep_phase_seconds_total{job_id="job-a", rank="0", phase="data"}': "0+3x40",
        'lockstep_phase_seconds_total{job_id="job-a", rank="1", phase="forward"}': "0+12x20 240x20",
        'lockstep_phase_seconds_total{job_id="job-a", rank="1", phase="data"}': "0+3x20 60x20",
    }
    whole = {'{phase="forward"}': 0.8, '{phase="data"}': 0.2}
    check(tmp_path, "job: Where the time goes A", series, {"4m": whole, "5m30s": whole, "8m": whole})


def test_what_is_no_longer_held_is_not_shown_as_held_and_idle(tmp_path: Path) -> None:
    series = INFO | {
        f'lockstep_gpu_info{{{GPU}, name="NVIDIA H200"}}': "1x200",
        f"lockstep_gpu_utilization_ratio{{{GPU}}}": "0x200",
        f'lockstep_gpu_allocation_info{{{GPU}, job_id="job-a", rank="0"}}': "1x40 stale",
    }
    idle = {f'{{{GPU}, device="gpu 0", job_id="job-a", rank="0", job_name="resnet"}}': 0.0}
    check(tmp_path, "fleet: Held and idle: which, and by whom A", series, {"9m": idle, "11m": {}})
    check(tmp_path, "fleet: Held and idle A", series, {"9m": {"{}": 1.0}, "11m": {"{}": 0.0}})


def test_how_long_ago_a_step_was_is_not_told_of_a_paused_job_and_begins_anew_with_it(tmp_path: Path) -> None:
    series = {
        'lockstep_job_state{job_id="job-a", state="running"}': "1x20 0x238 1x20",
        'lockstep_job_start_timestamp_seconds{job_id="job-a"}': "0x20 _x239 3900x20",
        'lockstep_job_last_step_timestamp_seconds{job_id="job-a"}': "0+15x20 300x242 3960x15",
    }
    name = '{job_id="job-a"}'
    shown = {"5m": {name: 0.0}, "30m": {}, "65m": {name: 0.0}, "65m45s": {name: 45.0}, "67m": {name: 60.0}}
    check(tmp_path, "job: Last step A", series, shown)


def test_an_xid_is_shown_with_one_holder_of_its_gpu_and_also_when_the_node_is_silent(tmp_path: Path) -> None:
    series = INFO | {
        f'lockstep_gpu_info{{{GPU}, name="NVIDIA H200"}}': "1x20 stale",
        f'lockstep_gpu_allocation_info{{{GPU}, job_id="job-a", rank="0"}}': "1x20 stale",
        f'lockstep_gpu_allocation_info{{{GPU}, job_id="job-a", rank="1"}}': "_x8 1x3 stale",
        f'lockstep_gpu_xid_last_timestamp_seconds{{{GPU}, xid="79"}}': "_x4 60x16 stale",
    }
    held = f'{{{GPU}, xid="79", job_id="job-a", job_name="resnet"}}'
    silent = f'{{{GPU}, xid="79"}}'
    shown = {"90s": {held: 30.0}, "2m30s": {held: 90.0}, "6m": {silent: 300.0}, "16m": {}}
    check(tmp_path, "gpu: XID errors A", series, shown)
