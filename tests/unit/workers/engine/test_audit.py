"""The audit names what would bend the curve, lets pass what would not, and changes nothing itself."""

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from torch import Tensor

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.actor.failures import job_error
from lockstep.workers.engine import Listener, NotDeterministic, Point, Progress, Trainer
from lockstep.workers.training import SMALLEST, build_trainer
from tests.support.bent_models import BENT
from tests.support.honest_models import HONEST, Images, Numbers, Points, convolutions, sgd


class Recorder(Listener):
    def __init__(self) -> None:
        self.points: list[Point] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]


@pytest.fixture(autouse=True)
def old_layers_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def curve(module: Any, data: Any, audit: str, **options: Any) -> tuple[str, list[Point]]:
    """The digest of the weights, and all points."""
    torch.manual_seed(5)
    recorder = Recorder()
    settings = {"max_steps": 4, "batch_size": 20, "shards": 4, "log_every_steps": 1, "evaluate_every_steps": 2}
    result = Trainer(audit=audit, **settings | options).fit(module(), data(), sgd, listener=recorder)
    return result.weights_digest, recorder.points


@pytest.mark.parametrize("name", HONEST)
def test_a_model_that_keeps_the_curve_passes_and_has_the_curve_that_it_has_without_the_audit(name: str) -> None:
    plain = curve(*HONEST[name], audit="off")
    assert curve(*HONEST[name], audit="start") == plain
    assert curve(*HONEST[name], audit="always") == plain


@pytest.mark.parametrize("name", BENT)
def test_what_would_bend_the_curve_is_named_before_the_first_step(name: str) -> None:
    module, data, words = BENT[name]
    for audit in ("start", "always"):
        with pytest.raises(NotDeterministic, match=words) as caught:
            curve(module, data, audit)
        error = job_error(caught.value, rank=1)
        assert (error.reason, error.message, error.traceback) == ("NOT_DETERMINISTIC", str(caught.value), "")


def counted_in_a_closure() -> Callable[[Tensor], Tensor]:
    """A state that shows from a step on, where nobody looks."""
    calls = itertools.count()
    return lambda inputs: inputs * (1 if (call := next(calls)) < 20 else 1 + 0.01 * call)


class TurningSecretly(Numbers):
    """Has such a state."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = counted_in_a_closure()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.turn(super().forward(inputs))


def test_what_shows_only_later_is_named_when_every_step_is_watched() -> None:
    assert curve(TurningSecretly, Points, "start")[0] != curve(TurningSecretly, Points, "off")[0]
    with pytest.raises(NotDeterministic, match=r"forward \(TurningSecretly\) gave other bits"):
        curve(TurningSecretly, Points, "always", max_steps=20)


def test_the_generators_are_seeded_for_each_shard_whatever_was_drawn_before() -> None:
    curves = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        curves.append(curve(*HONEST["augmentation"], audit="off"))
    assert curves[0] == curves[1]
    assert curves[0][0] != curve(convolutions, Images, audit="off")[0]


class Noisy(torch.optim.SGD):
    """Adds noise to what it has learnt."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)


def test_noise_of_an_optimizer_is_a_function_of_the_step_not_of_the_last_shard() -> None:
    digests = []
    for drawn in (0, 3):

        class After(Numbers):
            def count_correct(self, outputs: Tensor, targets: Tensor, drawn: int = drawn) -> None:
                torch.rand(drawn)  # as a rank that has computed another shard last

        torch.manual_seed(5)
        result = Trainer(max_steps=2, batch_size=20).fit(After(), Points(), lambda p: Noisy(p, lr=0.1))
        digests.append(result.weights_digest)
    assert digests[0] == digests[1]


def test_the_spec_says_when_to_look_and_one_from_before_it_could_means_the_start() -> None:
    spec = json_format.ParseDict(SMALLEST, JobSpec())
    assert build_trainer(spec).audit == "start"
    spec.training.audit = "always"
    assert build_trainer(spec).audit == "always"
