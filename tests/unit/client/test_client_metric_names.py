"""Metrics that are asked for by name: a name that no point has is told, and one that may still come is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lockstep.client import Client
from lockstep.client.errors import InvalidRequest
from lockstep.v1.metrics_service_pb2 import ListMetricsRequest, ListMetricsResponse
from tests.support.scripted_server import ScriptedServer, a_job, a_point, points


def known_metrics(*names: str) -> Callable[[ListMetricsRequest], ListMetricsResponse]:
    """A job whose points have these names."""

    def answer(request: ListMetricsRequest) -> ListMetricsResponse:
        found = [a_point(name, 1, 0.5) for name in names if not request.names or name in request.names]
        return ListMetricsResponse(points=found)

    return answer


NO_SUCH_METRIC = r"^names has 'val_los', which is no metric of this job; it has train_loss, val_loss$"


@pytest.mark.parametrize("state", ["RUNNING", "SUCCEEDED"])
def test_a_metric_of_a_name_that_no_point_has_is_an_error_with_the_names_there_are(
    server: ScriptedServer, client: Client, state: str
) -> None:
    server.on("GetJob", a_job(state))
    server.on("ListMetrics", known_metrics("train_loss", "val_loss"))
    server.on("StreamMetrics", [points("c")])
    job = client.get_job("j-1")
    for names in (["val_los"], "val_los", ["val_loss", "val_los"]):
        with pytest.raises(InvalidRequest, match=NO_SUCH_METRIC):
            job.metrics(names)
    with pytest.raises(InvalidRequest, match=NO_SUCH_METRIC):
        list(job.metrics(["val_los"], follow=True))
    assert len(job.metrics(["val_loss"], after_step=0)) == 1


def test_a_metric_that_may_still_come_is_no_error(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on("ListMetrics", known_metrics("train_loss"))
    assert client.get_job("j-1").metrics(["val_loss"]) == []
    server.on("GetJob", a_job("SUCCEEDED"))
    server.on("ListMetrics", known_metrics())
    assert client.get_job("j-1").metrics(["val_loss"]) == []
