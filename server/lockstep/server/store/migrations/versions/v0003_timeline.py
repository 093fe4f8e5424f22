"""How an attempt came to its first step."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of attempts before nothing is known."""
    op.add_column("jobs", sa.Column("timeline", sa.JSON()))
