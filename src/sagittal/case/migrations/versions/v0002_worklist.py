"""Reference counts, audit lines, the worklist, and an order that does not depend on the clock."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from sagittal.case.engines import append_only, changeable

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OLD = {"runs": ("case_id", "number"), "findings": ("case_id", "number"), "events": ("id",)}
NEW = {
    "store": ("id",),
    "contents": ("digest",),
    "content_uses": ("case_id", "run", "digest"),
    "audit": ("number",),
}
INDEXES = {
    "findings_by_run": ("findings", ["case_id", "run"], False),
    "findings_by_doubt": ("findings", ["case_id", "doubt"], False),
    "events_by_number": ("events", ["case_id", "number"], True),
    "events_by_finding": ("events", ["case_id", "finding"], False),
}
BATCH = 500


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    op.create_table("store", sa.Column("id", sa.String(32), primary_key=True))
    op.create_table(
        "contents",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("bytes", sa.BigInteger),
    )
    op.create_table(
        "content_uses",
        sa.Column("case_id", sa.String(32), primary_key=True),
        sa.Column("run", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), sa.ForeignKey("contents.digest"), primary_key=True),
        sa.ForeignKeyConstraint(["case_id", "run"], ["runs.case_id", "runs.number"]),
    )
    op.create_index("content_uses_by_digest", "content_uses", ["digest"])
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("when", sa.String(40), nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("case_id", sa.String(64)),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_index("audit_by_case", "audit", ["case_id", "number"])
    op.create_table(
        "case_summaries",
        sa.Column("case_id", sa.String(32), sa.ForeignKey("cases.id"), primary_key=True),
        sa.Column("search", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("changed", sa.String(40), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("findings", sa.Integer, nullable=False),
        sa.Column("undecided", sa.Integer, nullable=False),
        sa.Column("doubt", sa.Float),
        sa.Column("worst", sa.Text, nullable=False),
    )
    for table in OLD:
        _run(changeable(dialect, table))
    op.add_column("runs", sa.Column("author", sa.Text, nullable=False, server_default=""))
    op.add_column("runs", sa.Column("seen", sa.Integer, nullable=False, server_default="0"))
    op.add_column("findings", sa.Column("doubt", sa.Float))
    op.add_column("events", sa.Column("number", sa.Integer, nullable=False, server_default="0"))
    _fill()
    for name, (table, columns, unique) in INDEXES.items():
        op.create_index(name, table, columns, unique=unique)
    for table, key in (OLD | NEW).items():
        _run(append_only(dialect, table, key))


def downgrade() -> None:
    for name, (table, _, _) in INDEXES.items():
        op.drop_index(name, table_name=table)
    for table, column in (("events", "number"), ("findings", "doubt"), ("runs", "seen"), ("runs", "author")):
        op.drop_column(table, column)
    for table in ("case_summaries", "audit", "content_uses", "contents", "store"):
        op.drop_table(table)


def _run(statements: list[str]) -> None:
    for statement in statements:
        op.execute(statement)


def _fill() -> None:
    """Give the rows of an older store what the new columns and tables say."""
    connection, attributes = op.get_bind(), context.config.attributes
    identifier = attributes.get("store_id") or _known(connection, attributes.get("objects"))
    connection.execute(sa.text("INSERT INTO store (id) VALUES (:id)"), {"id": identifier})
    connection.execute(
        sa.text(
            "UPDATE events SET number = numbered.place FROM (SELECT id, ROW_NUMBER() OVER "
            "(PARTITION BY case_id ORDER BY id) AS place FROM events) AS numbered "
            "WHERE events.id = numbered.id"
        )
    )
    # The times are all that an older store has to say what a run had seen.
    connection.execute(
        sa.text(
            "UPDATE runs SET seen = (SELECT COUNT(*) FROM events WHERE events.case_id = runs.case_id "
            'AND events."when" <= runs.started)'
        )
    )
    _fill_doubt(connection)
    _fill_uses(connection, attributes.get("objects"))


def _known(connection: sa.Connection, objects: Path | None) -> str:
    """The id that the contents know the store by, where it held cases; else a new one."""
    mark = None if objects is None else objects / "store-id"
    cases = connection.execute(sa.text("SELECT COUNT(*) FROM cases")).scalar()
    if cases and mark is not None and mark.is_file():
        return mark.read_text(encoding="utf-8").strip()[:32]
    return secrets.token_hex(8)


def _fill_doubt(connection: sa.Connection) -> None:
    findings = sa.table(
        "findings",
        sa.column("case_id"),
        sa.column("number"),
        sa.column("content", sa.JSON),
        sa.column("doubt"),
    )
    change = (
        findings.update()
        .where(findings.c.case_id == sa.bindparam("case"), findings.c.number == sa.bindparam("place"))
        .values(doubt=sa.bindparam("much"))
    )
    rows = connection.execute(sa.select(findings.c.case_id, findings.c.number, findings.c.content)).all()
    for start in range(0, len(rows), BATCH):
        connection.execute(
            change,
            [
                {"case": r.case_id, "place": r.number, "much": _doubt(r.content)}
                for r in rows[start : start + BATCH]
            ],
        )


def _doubt(content: dict[str, Any]) -> float | None:
    doubts = [] if content["confidence"] is None else [1 - content["confidence"]]
    if amount := content["measurement"]:
        half, size = (amount["high"] - amount["low"]) / 2, abs(amount["value"])
        doubts.append(0.0 if half == 0 else 1.0 if half >= size else half / size)
    return max(doubts, default=None)


def _fill_uses(connection: sa.Connection, objects: Path | None) -> None:
    """Count the contents of older runs: what their artifacts name, and what those contents name in turn."""
    runs = sa.table(
        "runs",
        sa.column("case_id"),
        sa.column("number"),
        sa.column("inputs", sa.JSON),
        sa.column("outputs", sa.JSON),
    )
    parts: dict[tuple[str, str], list[str]] = {}
    contents: dict[str, int | None] = {}
    uses = []
    for row in connection.execute(sa.select(runs)).all():
        digests: dict[str, None] = {}
        for artifact in [*row.inputs, *row.outputs]:
            key = (artifact["kind"], artifact["content"])
            if key not in parts:
                parts[key] = _parts(objects, *key)
            digests |= dict.fromkeys([artifact["content"], *parts[key]])
        for digest in digests:
            contents.setdefault(digest, _size(objects, digest))
            uses.append({"case_id": row.case_id, "run": row.number, "digest": digest})
    for name, rows in (
        ("contents", [{"digest": digest, "bytes": size} for digest, size in contents.items()]),
        ("content_uses", uses),
    ):
        if rows:
            table = sa.table(name, *map(sa.column, rows[0]))
            connection.execute(table.insert(), rows)


def _path(objects: Path | None, digest: str) -> Path | None:
    if objects is None:
        return None
    stem = objects / digest[:2] / digest[2:]
    return next((p for p in (stem.with_suffix(".bin"), stem.with_suffix(".npy")) if p.is_file()), None)


def _size(objects: Path | None, digest: str) -> int | None:
    path = _path(objects, digest)
    return None if path is None else path.stat().st_size


def _parts(objects: Path | None, kind: str, digest: str) -> list[str]:
    """The contents that a content of version 0001 names: received files, or the arrays of a volume."""
    path = _path(objects, digest)
    if path is None or kind not in {"files", "volume"}:
        return []
    try:
        manifest = json.loads(path.read_bytes())
        if kind == "files":
            return [part for _, part in manifest]
        return [manifest[name] for name in ("array", "variance", "probabilities") if manifest[name]]
    except (ValueError, TypeError, KeyError):  # damaged: reading the case will say so
        return []
