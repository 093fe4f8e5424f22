"""Where the time of workers went."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; of jobs before nothing is known."""
    op.create_table(
        "ledgers",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("ledger", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_ledgers_job_id"),
        sa.PrimaryKeyConstraint("job_id", name="pk_ledgers"),
    )
