"""The append-only record: cases, runs, findings, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sagittal.case.engines import append_only

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEYS = {
    "cases": ("id",),
    "runs": ("case_id", "number"),
    "findings": ("case_id", "number"),
    "events": ("id",),
}


def upgrade() -> None:
    op.create_table(
        "cases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("case_id", sa.String(32), sa.ForeignKey("cases.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("outputs", sa.JSON, nullable=False),
        sa.Column("findings", sa.JSON, nullable=False),
        sa.Column("used", sa.JSON, nullable=False),
        sa.Column("seed", sa.String(24), nullable=False),
        sa.Column("doubt", sa.Text, nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("environment", sa.JSON, nullable=False),
        sa.Column("started", sa.String(40), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("case_id", sa.String(32), sa.ForeignKey("cases.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("run", sa.Integer),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("added", sa.String(40), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["case_id", "run"], ["runs.case_id", "runs.number"]),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("case_id", sa.String(32), sa.ForeignKey("cases.id"), nullable=False),
        sa.Column("finding", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("when", sa.String(40), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("successor", sa.Integer),
        sa.ForeignKeyConstraint(["case_id", "finding"], ["findings.case_id", "findings.number"]),
        sa.ForeignKeyConstraint(["case_id", "successor"], ["findings.case_id", "findings.number"]),
    )
    for table, key in KEYS.items():
        for statement in append_only(op.get_context().dialect.name, table, key):
            op.execute(statement)


def downgrade() -> None:
    for table in reversed(KEYS):
        op.drop_table(table)  # its triggers go with it
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION sagittal_append_only()")
