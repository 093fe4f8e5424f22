"""Who submitted a job."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; everybody was the same principal before."""
    op.add_column("jobs", sa.Column("owner", sa.String(128), nullable=False, server_default="local"))
