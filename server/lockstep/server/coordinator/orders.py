"""What the launcher is told to do, and by what the workers of an attempt are known."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from lockstep.server.coordinator.gangs import Gang
from lockstep.server.coordinator.launcher_connection import LauncherConnection
from lockstep.server.jobs.job import Job, Stop
from lockstep.server.process.private_files import write_atomically
from lockstep.v1.internal_service_pb2 import ConnectLauncherResponse, Drain, ResizeGang, StartGang, StopGang

_SECRET_BYTES = 32


class Orders:
    """Writes orders to the launcher's connection.

    While no launcher is in service they are lost. That is no harm: the next launcher tells what gangs there are, and
    what they still have to be told follows from that.

    Attributes:
        connection: the connection to the launcher, if there is one.
        reports_address: where workers report to, host:port.
        checkpoint_root: where jobs keep their checkpoints that do not say where; an absolute path.
    """

    def __init__(self, *, epoch: int, secret: bytes, checkpoint_root: str) -> None:
        """Prepare to write orders.

        Args:
            epoch: of this start of the server.
            secret: makes the tokens of attempts.
            checkpoint_root: see the class.
        """
        self.connection: LauncherConnection | None = None
        self.reports_address = ""
        self._epoch = epoch
        self._secret = secret
        self.checkpoint_root = checkpoint_root

    def token(self, job_id: str, attempt: int) -> str:
        """Return what proves that a report comes from this attempt, also to the server after a restart."""
        return hmac.new(self._secret, f"{job_id}/{attempt}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def node_token(self) -> str:
        """Return what proves that a sample comes from an agent of a node; no attempt's token is the same."""
        return hmac.new(self._secret, b"node agent", hashlib.sha256).hexdigest()

    def checkpoint_uri(self, job: Job) -> str:
        """Return the folder of a job's checkpoints."""
        root = job.spec.recovery.checkpoint_uri or self.checkpoint_root
        return f"{root.rstrip('/')}/{job.job_id}"

    def start(self, job: Job, gang: Gang) -> None:
        """Order the gang of a job's attempt."""
        start = StartGang(
            job_id=job.job_id,
            attempt=gang.attempt,
            spec=job.spec,
            node_ids=gang.node_ids,
            coordinator_address=self.reports_address,
            attempt_token=self.token(job.job_id, gang.attempt),
            epoch=self._epoch,
            checkpoint_uri=self.checkpoint_uri(job),
            init_from_uri=job.init_from_uri,
            owner=job.owner,
            curve_digest=job.curve_digest,
        )
        self._send(ConnectLauncherResponse(start_gang=start))

    def resize(self, job_id: str, gang: Gang) -> None:
        """Order a gang to have the workers that it is noted to have."""
        resize = ResizeGang(
            job_id=job_id, attempt=gang.attempt, revision=gang.revision, node_ids=gang.node_ids, epoch=self._epoch
        )
        self._send(ConnectLauncherResponse(resize_gang=resize))

    def stop(self, job_id: str, attempt: int, stop: Stop) -> None:
        """Order a gang to leave. An order that is repeated takes the place of the one before."""
        order = StopGang(job_id=job_id, attempt=attempt, grace_s=stop.grace_s, keep=stop.keep, refusable=stop.refusable)
        self._send(ConnectLauncherResponse(stop_gang=order))

    def drain(self) -> None:
        """Order that no worker is kept warm."""
        self._send(ConnectLauncherResponse(drain=Drain()))

    def _send(self, order: ConnectLauncherResponse) -> None:
        if self.connection is not None and self.connection.is_ready:
            self.connection.order(order)


def read_secret(folder: Path) -> bytes:
    """Read the secret of a data folder; the first time it is made.

    Raises:
        ValueError: the file is not one that was written here.
        OSError: it cannot be read or written.
    """
    path = folder / "secret"
    if not path.exists():
        write_atomically(path, secrets.token_hex(_SECRET_BYTES))
    secret = bytes.fromhex(path.read_text().strip())
    if len(secret) != _SECRET_BYTES:
        raise ValueError(f"{path} has {len(secret)} bytes in place of {_SECRET_BYTES}")
    return secret
