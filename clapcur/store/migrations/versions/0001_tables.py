"""The four tables: artifacts, edges, leases and the outbox to MLflow."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "artifact",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("stage", sa.String(64), nullable=False),
        sa.Column("finished", sa.Double, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("mlflow_run_id", sa.String(64)),
    )
    op.create_index("ix_artifact_kind", "artifact", ["kind"])
    op.create_index("ix_artifact_mlflow_run_id", "artifact", ["mlflow_run_id"])
    op.create_table(
        "edge",
        sa.Column("artifact_id", sa.String(12), primary_key=True),
        sa.Column("role", sa.String(200), primary_key=True),
        sa.Column("input_id", sa.String(12), nullable=False),
    )
    op.create_index("ix_edge_input_id", "edge", ["input_id"])
    op.create_table(
        "lease",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(300), nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("artifact_id", sa.String(12), nullable=False),
        sa.Column("topic", sa.String(100), nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("delivered", sa.Double),
        sa.UniqueConstraint("artifact_id", "topic"),
    )


def downgrade() -> None:
    """Drop the tables; `clapcur catalog rebuild` recreates their content from the store."""
    for table in ("outbox", "lease", "edge", "artifact"):
        op.drop_table(table)
