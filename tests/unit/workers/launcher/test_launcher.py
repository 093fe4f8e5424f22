"""The launcher, before there is a cluster."""

from lockstep.workers.launcher.launcher import Config, Launcher, Lifeline
from lockstep.workers.node.agent import Duty


class EmptyFleet:
    """A fleet without workers.

    Attributes:
        told: what workers would have been told.
    """

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def inventory(self, epoch: int, reports_address: str) -> list[object]:
        self.told.append((epoch, reports_address))
        return []


def test_workers_of_an_earlier_launcher_and_agents_are_told_the_address_for_reports_and_not_the_launchers_own() -> None:
    fleet = EmptyFleet()
    config = Config(
        coordinator_address="127.0.0.1:50051",
        reports_address="10.1.2.3:7000",
        launcher_token="",
        epoch=4,
        ray_address="",
        namespace="ours",
        log_format="json",
        warm_ttl_s=0,
        warm_workers=0,
        warm_memory_bytes=0,
        data_cache_bytes=0,
        node_token="secret",
        gpu_job_mapping_dir="/run/gpu-jobs",
    )
    assert not list(Launcher(config, fleet, Lifeline())._take_over())  # type: ignore[arg-type]
    assert fleet.told == [(4, "10.1.2.3:7000")]
    assert config.duty_of("node-1") == Duty("node-1", "10.1.2.3:7000", "secret", "ours", "/run/gpu-jobs")
