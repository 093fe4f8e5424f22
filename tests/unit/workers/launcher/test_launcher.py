"""The launcher, before there is a cluster."""

from lockstep.v1.launcher_pb2 import LauncherOptions, LauncherSettings
from lockstep.workers.launcher.launcher import Launcher, Lifeline
from lockstep.workers.node.agent import Duty, duty_of


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
    options = LauncherOptions(gpu_job_mapping_dir="/run/gpu-jobs")
    settings = LauncherSettings(
        coordinator_address="127.0.0.1:50051",
        reports_address="10.1.2.3:7000",
        epoch=4,
        namespace="ours",
        node_token="secret",
        options=options,
    )
    assert not list(Launcher(settings, fleet, Lifeline())._take_over())  # type: ignore[arg-type]
    assert fleet.told == [(4, "10.1.2.3:7000")]
    assert duty_of(settings, "node-1") == Duty("node-1", "10.1.2.3:7000", "secret", "ours", options)
