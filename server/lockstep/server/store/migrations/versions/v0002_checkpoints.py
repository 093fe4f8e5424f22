"""Checkpoints, heals, the number of the last report, and what a job starts from."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, which SQLite does in place, and the table."""
    op.add_column("jobs", sa.Column("heals", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("report_generation", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("report_sequence", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("init_from_uri", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step", name="pk_checkpoints"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_checkpoints_job_id"),
    )
