"""The tables. A change here needs a migration in `migrations/versions`; a test compares the two.

Times are microseconds since 1970 in UTC. Messages of the contract are stored as their bytes.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_microseconds(time: datetime) -> int:
    """Write a time as it is stored."""
    since = time - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_microseconds(value: int) -> datetime:
    """Read a time that is stored."""
    return _EPOCH + timedelta(microseconds=value)


# SQLite numbers rows by itself only in a column of exactly the type INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")


class AnyDouble(TypeDecorator[float]):
    """A double of which NaN survives: SQLite has no NaN and stores NULL for it."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> Any:
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> float:
        return math.nan if value is None else value


meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", RowNumber, primary_key=True, autoincrement=True),
    Column("job_id", String(64), nullable=False, unique=True),
    Column("name", String(63), nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("placement_failures", Integer, nullable=False),
    Column("heals", Integer, nullable=False, server_default="0"),
    Column("create_time", BigInteger, nullable=False),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger),
    Column("step", BigInteger, nullable=False),
    Column("total_steps", BigInteger, nullable=False),
    Column("epoch", Double, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("result", LargeBinary),
    Column("error", LargeBinary),
    Column("hardware_class", Text, nullable=False),
    Column("engine_version", String(32), nullable=False),
    Column("curve_digest", String(64), nullable=False),
    Column("event_count", Integer, nullable=False),
    Column("report_generation", Integer, nullable=False, server_default="0"),
    Column("report_sequence", BigInteger, nullable=False, server_default="0"),
    Column("init_from_uri", Text, nullable=False, server_default=""),
    Column("timeline", JSON),
    Column("owner", String(128), nullable=False, server_default="local"),
    Index(None, "state", "number"),
    sqlite_autoincrement=True,
)

labels = Table(
    "labels",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("value", String(255), nullable=False),
    Index(None, "key", "value"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("message", Text, nullable=False),
)

metric_points = Table(
    "metric_points",
    metadata,
    Column("seq", RowNumber, primary_key=True, autoincrement=True),
    Column("job_id", String(64), ForeignKey("jobs.job_id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("epoch", AnyDouble),
    Column("value", AnyDouble),
    UniqueConstraint("job_id", "name", "step"),
    Index(None, "job_id", "seq"),
    Index(None, "job_id", "kind", "step", "name"),
    sqlite_autoincrement=True,
)

# Those that are kept, as the workers told. `files` is a JSON list of {name, size_bytes, sha256}.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("uri", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("files", JSON, nullable=False),
)

# Where the time of a job's workers went, as `ledger/ledger.py` says it in JSON.
ledgers = Table(
    "ledgers",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("ledger", JSON, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("principal", String(128), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("job_id", String(64), ForeignKey("jobs.job_id"), nullable=False),
    Column("spec_digest", String(64), nullable=False),
)
