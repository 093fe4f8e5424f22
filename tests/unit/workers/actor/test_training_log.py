"""What a rank says in its job's log of its own work."""

import logging

import pytest

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.actor.training_log import TrainingLog
from lockstep.workers.actor.watchdog import Watchdog
from lockstep.workers.engine import Point, Progress


def test_a_validation_is_logged_with_the_newest_train_loss_and_its_step(caplog: pytest.LogCaptureFixture) -> None:
    log = TrainingLog(StartGang(job_id="job-1", attempt=1), Watchdog(30.0))
    log._leads = True  # without a generation: nothing is to be reported here
    with caplog.at_level(logging.INFO, logger="lockstep"):
        log.progressed(Progress(3, 60, 0.15), [Point("val_loss", 3, 0.15, 2.5)])
        log.progressed(Progress(20, 60, 1.0), [Point("train_loss", 20, 1.0, 2.0), Point("grad_norm", 20, 1.0, 9.0)])
        log.progressed(Progress(23, 60, 1.15), [Point("val_loss", 23, 1.15, 1.5)])
        both = [Point("train_loss", 40, 2.0, 1.0), Point("val_loss", 40, 2.0, 0.5), Point("x", 40, 2.0, 7.0, True)]
        log.progressed(Progress(40, 60, 2.0), both)
    log._leads = False
    log.close()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "val_loss 2.5",
        "train_loss (of step 20) 2, val_loss 1.5",
        "train_loss 1, val_loss 0.5",
    ]
