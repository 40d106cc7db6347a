"""Which runs refer to which contents.

A run's artifacts name their contents and the further contents that those name (:class:`Artifact.parts`): the
room that encodes a value knows what it has put into the store, so the store need not read manifests whose
format belongs to a floor above it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from sagittal.case.objects import ObjectStore
from sagittal.case.record import Run
from sagittal.case.schema import ContentRow, ContentUseRow

__all__ = ["by_run", "count", "digests", "record", "used", "write"]

_AT_ONCE = 500


def digests(run: Run) -> list[str]:
    """Return every content that a run refers to, once, sorted."""
    return sorted(
        {d for artifact in (*run.inputs, *run.outputs) for d in (artifact.content, *artifact.parts)}
    )


def record(session: Session, objects: ObjectStore, case_id: str, run: Run) -> None:
    """Write down what ``run`` refers to, in the transaction that adds it.

    The transaction holds the collector off, so that a content which is there now stays.

    Raises:
        StorageError: The store does not hold a content.
    """
    write(session, case_id, run.number, {digest: objects.size(digest) for digest in digests(run)})


def write(session: Session, case_id: str, run: int, contents: dict[str, int]) -> None:
    """Write down that a run refers to ``contents``, digest to bytes."""
    known = used(session, contents)
    # Sorted, so that two writers who add the same contents wait for each other and never in a circle.
    fresh = [{"digest": d, "bytes": contents[d]} for d in sorted(contents) if d not in known]
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    if fresh:
        session.execute(dialect.insert(ContentRow).on_conflict_do_nothing(), fresh)
    if contents:
        rows = [{"case_id": case_id, "run": run, "digest": digest} for digest in sorted(contents)]
        session.execute(insert(ContentUseRow), rows)


def used(session: Session, wanted: Iterable[str]) -> set[str]:
    """Return those of ``wanted`` that some run refers to."""
    asked, found = list(wanted), set[str]()
    for start in range(0, len(asked), _AT_ONCE):
        part = asked[start : start + _AT_ONCE]
        found |= set(session.scalars(select(ContentRow.digest).where(ContentRow.digest.in_(part))))
    return found


def by_run(session: Session, case_id: str) -> dict[int, list[str]]:
    """Return the contents that each run of a case refers to, sorted."""
    query = select(ContentUseRow.run, ContentUseRow.digest).filter_by(case_id=case_id)
    found: dict[int, list[str]] = {}
    for run, digest in session.execute(query.order_by(ContentUseRow.run, ContentUseRow.digest)):
        found.setdefault(run, []).append(digest)
    return found


def count(session: Session, digest: str) -> int:
    """Return how many runs refer to a content."""
    query = select(func.count()).select_from(ContentUseRow).where(ContentUseRow.digest == digest)
    return session.scalar(query) or 0
