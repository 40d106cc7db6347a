"""The tables that the code describes are the tables that the migrations make."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

import sagittal.case
from sagittal.case.record import FindingDraft, Run, Verdict
from sagittal.case.schema import Base
from store_places import in_folder

TABLES = ["cases", "events", "findings", "runs"]


def migrate(path: Path, direction: Callable[[Config, str], None], revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(sagittal.case.__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        direction(config, revision)
    engine.dispose()


def schema(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return dict(rows)


def test_the_models_and_the_migrations_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    migrate(path, command.upgrade, "head")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_the_migrations_go_up_down_and_up_again(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    migrate(path, command.upgrade, "head")
    made = schema(path)
    assert {f"{table}_no_{action}" for table in TABLES for action in ("update", "delete")} <= set(made)
    migrate(path, command.upgrade, "head")
    assert schema(path) == made
    migrate(path, command.downgrade, "base")
    assert set(schema(path)) <= {"alembic_version", "sqlite_sequence"}
    migrate(path, command.upgrade, "head")
    assert schema(path) == made


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_only_ever_added(
    tmp_path: Path, table: str, make_run: Callable[..., Run], draft: Callable[..., FindingDraft]
) -> None:
    with in_folder(tmp_path).open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        store.judge(case_id, 1, Verdict.ACCEPTED, who="a")
        before = store.case(case_id)
    connection = sqlite3.connect(tmp_path / "cases.sqlite")
    (column,) = (row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[0] == 0)
    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match="the case record is append-only"):
            connection.execute(statement)
    connection.close()
    with in_folder(tmp_path).open() as store:
        assert store.case(case_id) == before


def test_replacing_a_row_is_an_edit_too(
    tmp_path: Path, make_run: Callable[..., Run], draft: Callable[..., FindingDraft]
) -> None:
    with in_folder(tmp_path).open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
    connection = sqlite3.connect(tmp_path / "cases.sqlite")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT OR REPLACE INTO cases SELECT id, 'changed', created FROM cases")
    connection.close()
