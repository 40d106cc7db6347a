"""The migrations make the tables that the code describes, go up and down with data, and guard the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from sagittal.case.engines import Database, PostgreSQL, SQLite
from sagittal.case.record import FindingDraft, FindingState, Run, Verdict
from sagittal.case.schema import Base
from sagittal.case.store import CaseStore
from sagittal.case.upgrade import configuration
from sagittal.core.errors import StorageError
from sagittal.core.provenance import canonical_json
from store_places import Place

TABLES = ["cases", "events", "findings", "runs", "store", "contents", "content_uses", "audit"]


@contextmanager
def database(place: Place) -> Iterator[Database]:
    """The database alone, without the store that would bring it up to date."""
    if place.engine == "sqlite":
        Path(place.location).mkdir(exist_ok=True)
        found: Database = SQLite(Path(place.location) / "cases.sqlite", read_only=False)
    else:
        found = PostgreSQL(place.location, read_only=False)
    yield found
    found.close()


def migrate(place: Place, direction: Callable[..., None], revision: str) -> None:
    config = configuration()
    with database(place) as found, found.writing(alone=True) as session:
        config.attributes.update(connection=session.connection(), objects=place.objects)
        direction(config, revision)


def rows(place: Place, query: str) -> list[tuple[Any, ...]]:
    with database(place) as found, found.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def schema(place: Place) -> dict[str, Any]:
    with database(place) as found, found.engine.connect() as connection:
        seen = inspect(connection)
        tables = {
            name: (
                [
                    (column["name"], str(column["type"]), column["nullable"])
                    for column in seen.get_columns(name)
                ],
                sorted(index["name"] for index in seen.get_indexes(name)),
            )
            for name in seen.get_table_names()
        }
        triggers = (
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            if place.engine == "sqlite"
            else "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
        )
        return {**tables, "triggers": sorted(row[0] for row in connection.execute(text(triggers)))}


def test_the_models_and_the_migrations_agree(place: Place) -> None:
    migrate(place, command.upgrade, "head")

    def ours(_thing: object, name: str | None, kind: str, reflected: bool, other: object) -> bool:
        return not (kind == "table" and reflected and other is None and name not in Base.metadata.tables)

    with database(place) as found, found.engine.connect() as connection:
        options = {"compare_type": True, "include_object": ours}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_go_up_down_and_up_again(place: Place) -> None:
    migrate(place, command.upgrade, "head")
    made = schema(place)
    assert {f"{table}_no_{action}" for table in TABLES for action in ("update", "delete")} <= set(
        made["triggers"]
    )
    migrate(place, command.upgrade, "head")
    assert schema(place) == made
    migrate(place, command.downgrade, "base")
    assert set(schema(place)) == {"alembic_version", "triggers"}
    assert schema(place)["triggers"] == []
    migrate(place, command.upgrade, "head")
    assert schema(place) == made


# A store of version 0001, as the code of then wrote it

CASE = "0123456789ab"


def put(place: Place, content: bytes, suffix: str = "bin") -> str:
    digest = hashlib.sha256(content).hexdigest()
    path = place.objects / digest[:2] / f"{digest[2:]}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return digest


@pytest.fixture
def old(place: Place, draft: Callable[..., FindingDraft]) -> Place:
    """Received files and a volume; two findings, of which a person accepted one before the second run."""
    received = put(place, b"received")
    files = put(place, canonical_json([["a.nii", received]]).encode())
    array = put(place, b"array", "npy")
    manifest = {"array": array, "variance": None, "probabilities": None, "classes": []}
    volume = put(place, canonical_json(manifest).encode())
    migrate(place, command.upgrade, "0001")

    def artifact(role: str, kind: str, content: str) -> dict[str, str]:
        return {"role": role, "kind": kind, "content": content}

    gone = artifact("gone", "volume", "00" * 32)
    taken, read = artifact("t1.files", "files", files), artifact("t1", "volume", volume)
    runs = [
        (1, "receive", [], [taken], "2026-01-01T00:00:00.000+00:00"),
        (2, "read", [taken], [read, gone], "2026-01-03"),
    ]
    drafts = [draft("a", confidence=0.25, measurement=None), draft("b", 0.5)]
    with database(place) as found, found.writing(alone=True) as session:
        connection = session.connection()
        add(connection, "cases", id=CASE, label="Alt", created="2026-01-01")
        for number, step, inputs, outputs, started in runs:
            add(
                connection,
                "runs",
                case_id=CASE,
                number=number,
                step=step,
                version="1",
                inputs=inputs,
                outputs=outputs,
                findings=[d.content_hash for d in drafts] if number == 1 else [],
                used=[1] if number == 2 else [],
                parameters={},
                seed="7",
                doubt="none",
                models={},
                environment={},
                started=started,
                seconds=1.0,
            )
        for number, finding in enumerate(drafts, start=1):
            content = json.loads(canonical_json(finding.to_json()))
            add(
                connection,
                "findings",
                case_id=CASE,
                number=number,
                run=1,
                author="receive 1",
                added="2026-01-01",
                content=content,
            )
        for when, verdict in (("2026-01-02", "accepted"), ("2026-01-04", "rejected")):
            add(
                connection,
                "events",
                case_id=CASE,
                finding=1,
                verdict=verdict,
                who="Dr A",
                when=when,
                note="",
                successor=None,
            )
    return place


def add(connection: Connection, table: str, **values: Any) -> None:
    names = ", ".join(f'"{name}"' for name in values)
    given = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in values.items()}
    marks = ", ".join(f":{name}" for name in values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), given)


def test_an_older_store_is_brought_up_to_date_with_its_data(old: Place) -> None:
    with CaseStore(old.location, objects=old.objects) as store:
        case = store.case(CASE)
        (summary,) = store.worklist().rows
        with store.database.reading() as session:
            from sagittal.case import uses

            used = uses.by_run(session, CASE)
    first, second = case.findings
    assert [(e.number, e.verdict) for e in first.events] == [(1, Verdict.ACCEPTED), (2, Verdict.REJECTED)]
    assert [run.seen for run in case.runs] == [0, 1]
    assert [run.author for run in case.runs] == ["", ""]
    assert (summary.label, summary.state, summary.findings, summary.undecided) == ("Alt", "open", 1, 1)
    assert (summary.doubt, summary.worst) == (1.0, second.content.statement)
    received, array = (hashlib.sha256(content).hexdigest() for content in (b"received", b"array"))
    t1_files, t1, gone = case.runs[0].outputs[0], *case.runs[1].outputs
    assert used[1] == sorted([t1_files.content, received])
    assert used[2] == sorted([t1_files.content, received, t1.content, array, gone.content])
    sizes = dict(rows(old, "SELECT digest, bytes FROM contents"))
    assert (sizes[array], sizes[gone.content]) == (5, None)
    assert dict(rows(old, "SELECT number, doubt FROM findings")) == {1: 0.75, 2: 1.0}


def test_a_store_goes_down_and_up_again_with_its_data(old: Place, draft: Callable[..., FindingDraft]) -> None:
    with CaseStore(old.location, objects=old.objects) as store:
        store.supersede(CASE, 2, draft("b", 2.0), who="Dr B")
        before, worklist, identity = store.case(CASE), store.worklist(), store.id
    migrate(old, command.downgrade, "0001")
    assert rows(old, "SELECT COUNT(*) FROM events") == [(3,)]
    with CaseStore(old.location, objects=old.objects) as store:
        after = store.case(CASE)
        assert after.findings == before.findings
        assert [run.step for run in after.runs] == [run.step for run in before.runs]
        again = [replace(row, changed=worklist.rows[0].changed) for row in store.worklist().rows]
        assert again == list(worklist.rows)
        assert old.engine == "sqlite" or store.id == identity
        assert store.finding(CASE, 2).state is FindingState.SUPERSEDED


def test_an_older_store_is_not_brought_up_to_date_by_a_reader(old: Place) -> None:
    with pytest.raises(StorageError, match="of another version; got 0001; expected 00"):
        CaseStore(old.location, objects=old.objects, read_only=True)
    assert rows(old, "SELECT version_num FROM alembic_version") == [("0001",)]


# Versions and files that are none


def test_a_store_of_a_later_version_is_not_touched(place: Place) -> None:
    place.open().close()
    with database(place) as found, found.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = schema(place), files(place)
    for read_only in (False, True):
        with pytest.raises(StorageError, match=r"of another version; got 9999; expected \d{4}"):
            CaseStore(place.location, objects=place.objects, read_only=read_only)
        if not read_only:
            assert files(place) == before[1]
    assert schema(place) == before[0]


def files(place: Place) -> dict[str, bytes]:
    folders = [place.objects, *([Path(place.location)] if place.engine == "sqlite" else [])]
    return {str(p): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def test_another_programs_database_is_refused_and_not_touched(place: Place) -> None:
    with database(place) as found, found.engine.begin() as connection:
        connection.execute(text("CREATE TABLE cases (number INTEGER)"))
        connection.execute(text("INSERT INTO cases VALUES (7)"))
    before = files(place)
    with pytest.raises(StorageError, match="this is not a case store; got .*cases"):
        CaseStore(place.location, objects=place.objects)
    assert files(place) == before
    assert rows(place, "SELECT * FROM cases") == [(7,)]


# Guards


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_only_ever_added(
    place: Place, table: str, make_run: Callable[..., Run], draft: Callable[..., FindingDraft]
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        store.judge(case_id, 1, Verdict.ACCEPTED, who="a")
        before = store.case(case_id), store.audit_lines()
        column = inspect(store.database.engine).get_columns(table)[0]["name"]
        statements = [f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"]
        if place.engine == "postgresql":
            statements.append(f"TRUNCATE {table} CASCADE")
        for statement in statements:
            with (
                pytest.raises(DBAPIError, match="the case record is append-only"),
                store.database.engine.begin() as connection,
            ):
                connection.execute(text(statement))
        assert (store.case(case_id), store.audit_lines()) == before


def test_replacing_a_row_is_an_edit_too(place: Place) -> None:
    if place.engine != "sqlite":
        pytest.skip("only SQLite replaces rows on insert")
    with place.open() as store:
        store.create_case("demo")
        with pytest.raises(DBAPIError, match="append-only"), store.database.engine.begin() as connection:
            connection.execute(text("INSERT OR REPLACE INTO cases SELECT id, 'changed', created FROM cases"))
