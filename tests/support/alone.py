"""The curve that a job must have, whatever happened to it: that of the engine alone, in this process."""

import functools

from lockstep.client import Job, MetricKind
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Listener, Point, Progress
from lockstep.workers.training import train


class Recorder(Listener):
    def __init__(self) -> None:
        self.points: list[Point] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]


def assert_curve_of_the_engine_alone(job: Job) -> None:
    """Check that a finished job has the weights, the final metrics and each point of an undisturbed run, once."""
    spec = JobSpec()
    for part in ("model", "data", "optimizer", "training", "resources"):  # what a curve depends on, and more
        getattr(spec, part).CopyFrom(getattr(job.spec, part))
    spec.resources.workers = spec.resources.min_workers = 1
    digest, final_metrics, points = _alone(spec.SerializeToString(deterministic=True))
    assert job.result is not None
    assert job.result.weights_digest == digest
    assert dict(job.result.final_metrics) == final_metrics
    stored = [(point.name, point.step, point.epoch, point.value) for point in job.metrics(kind=MetricKind.RESULT)]
    assert sorted(stored) == points


@functools.cache
def _alone(spec: bytes) -> tuple[str, dict[str, float], list[tuple[str, int, float, float]]]:
    recorder = Recorder()
    result = train(JobSpec.FromString(spec), listener=recorder)
    points = [(point.name, point.step, point.epoch, point.value) for point in recorder.points]
    return result.weights_digest, result.final_metrics, sorted(points)
