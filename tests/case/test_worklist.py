"""The worklist and pages of findings, on both databases; and that they follow the record."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from sqlalchemy import event

from sagittal.case.record import FindingDraft, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from store_places import Place

MakeRun = Callable[..., Run]
MakeDraft = Callable[..., FindingDraft]


def labels(store: CaseStore, **asked: object) -> list[str]:
    return [row.label for row in store.worklist(**asked).rows]


@pytest.fixture
def filled(place: Place, make_run: MakeRun, draft: MakeDraft) -> Place:
    """Three cases: "sure" decided, "Unsure" a draft, "leer" empty."""
    with place.open() as store:
        sure, unsure = (store.create_case(label) for label in ("sure", "Unsure"))
        store.create_case("leer, Straße")
        store.add_run(sure, make_run(), [draft("a", confidence=0.9, measurement=None)])
        store.add_run(unsure, make_run(), [draft("b", confidence=0.3, measurement=None), draft("c", 100.0)])
        store.judge(sure, 1, Verdict.ACCEPTED, who="Dr A")
    return place


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("doubt", ["Unsure", "sure", "leer, Straße"]),
        ("changed", ["sure", "Unsure", "leer, Straße"]),
        ("created", ["leer, Straße", "Unsure", "sure"]),
        ("label", ["leer, Straße", "sure", "Unsure"]),
    ],
)
def test_cases_are_listed_in_the_order_asked_for(filled: Place, order: str, expected: list[str]) -> None:
    with filled.open(read_only=True) as store:
        assert labels(store, order=order) == expected


def test_a_summary_says_where_the_case_stands(filled: Place) -> None:
    with filled.open() as store:
        unsure, sure, empty = store.worklist().rows
    assert (unsure.state, unsure.findings, unsure.undecided) == ("open", 2, 2)
    assert unsure.doubt == pytest.approx(0.7)
    assert unsure.worst == "b: 5 ml"
    assert (sure.state, sure.findings, sure.undecided) == ("reviewed", 1, 0)
    assert (empty.state, empty.findings, empty.doubt, empty.worst) == ("empty", 0, None, "")


@pytest.mark.parametrize(
    ("search", "expected"),
    [("SURE", ["Unsure", "sure"]), ("STRASSE leer", ["leer, Straße"]), ("%", []), ("_ure", []), ("nope", [])],
)
def test_search_finds_words_in_any_case_and_takes_no_pattern(
    filled: Place, search: str, expected: list[str]
) -> None:
    with filled.open() as store:
        assert labels(store, search=search) == expected


def test_search_finds_an_id(filled: Place) -> None:
    with filled.open() as store:
        for case_id in store.case_ids():
            assert [row.id for row in store.worklist(search=case_id).rows] == [case_id]


def test_states_and_parts_are_cut_out(filled: Place) -> None:
    with filled.open() as store:
        assert labels(store, state="open") == ["Unsure"]
        assert labels(store, state="reviewed") == ["sure"]
        assert labels(store, state="empty") == ["leer, Straße"]
        part = store.worklist(offset=1, limit=1)
        assert (part.total, [row.label for row in part.rows]) == (3, ["sure"])
        assert store.worklist(offset=5).rows == ()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"state": "lost"}, "no case has this state; got lost; expected one of empty"),
        ({"order": "size"}, "no such order; got size; expected one of doubt"),
        ({"offset": -1}, "expected 0 or more"),
        ({"search": "a\0"}, "character NUL"),
    ],
)
def test_what_cannot_be_listed_is_refused(place: Place, asked: dict, said: str) -> None:
    with place.open() as store, pytest.raises(InputError, match=said):
        store.worklist(**asked)


def test_a_rejected_finding_no_longer_makes_a_case_doubtful(filled: Place) -> None:
    with filled.open() as store:
        case_id = store.worklist().rows[0].id
        store.judge(case_id, 1, Verdict.REJECTED, who="Dr A")
        (row,) = store.worklist(search="unsure").rows
        assert (row.findings, row.undecided, row.worst) == (1, 1, "c: 100 ml")
        assert row.doubt == pytest.approx(0.01)
        store.judge(case_id, 2, Verdict.REJECTED, who="Dr A")
        (row,) = store.worklist(search="unsure").rows
    assert (row.state, row.findings, row.doubt, row.worst) == ("reviewed", 0, None, "")


@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_happens_the_worklist_says_what_the_record_says(
    place: Place, make_run: MakeRun, draft: MakeDraft, seed: int
) -> None:
    chance = random.Random(seed)
    with place.open() as store:
        cases = [store.create_case(f"case {i}") for i in range(3)]
        for turn in range(40):
            case_id = chance.choice(cases)
            standing = store.case(case_id).standing()
            if not standing or chance.random() < 0.3:
                drafts = [draft(s, confidence=chance.random()) for s in chance.sample("abcd", 2)]
                store.add_run(case_id, make_run(step=chance.choice("xy")), drafts)
                continue
            number = chance.choice(standing).number
            if chance.random() < 0.3:
                store.supersede(case_id, number, draft("s", 1 + turn), who="Dr A")
            else:
                store.judge(case_id, number, chance.choice([Verdict.ACCEPTED, Verdict.REJECTED]), who="Dr A")
        kept = store.worklist()
        for row in kept.rows:
            case = store.case(row.id)
            doubts = [f.content.doubt for f in case.standing() if f.content.doubt is not None]
            drafts = [f for f in case.findings if not f.events]
            assert row.findings == len(case.standing())
            assert row.undecided == len(drafts)
            assert row.doubt == max(doubts, default=None)
            assert row.state == ("empty" if not case.findings else "open" if drafts else "reviewed")
        store.rebuild_worklist()
        again = store.worklist()
    unchanged = {row.id: (row.state, row.findings, row.undecided, row.doubt, row.worst) for row in kept.rows}
    assert unchanged == {
        row.id: (row.state, row.findings, row.undecided, row.doubt, row.worst) for row in again.rows
    }


def test_a_change_is_never_earlier_than_the_one_before(
    place: Place, make_run: MakeRun, draft: MakeDraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.open() as store:
        case_id = store.create_case("clock")
        before = store.worklist().rows[0].changed
        monkeypatch.setattr("sagittal.case.changes.now", lambda: "1990-01-01T00:00:00.000+00:00")
        store.add_run(case_id, make_run(), [draft()])
        assert store.worklist().rows[0].changed == before


# Pages of findings


def test_findings_come_in_parts_with_their_events(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft(f"{i}") for i in range(7)])
        store.judge(case_id, 3, Verdict.REJECTED, who="Dr A")
        store.judge(case_id, 4, Verdict.ACCEPTED, who="Dr A")
        whole = store.case(case_id)
        part = store.findings(case_id, offset=2, limit=2)
        assert (part.total, part.rows) == (7, whole.findings[2:4])
        standing = store.findings(case_id, offset=2, limit=2, standing=True)
        assert (standing.total, standing.rows) == (6, whole.standing()[2:4])
        assert store.findings(case_id, offset=9).rows == ()
        assert store.finding(case_id, 3) == whole.findings[2]
        with pytest.raises(InputError, match="no case has this id"):
            store.findings("nope")


def test_a_case_of_many_findings_is_not_read_whole(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    """Judging, a page of findings and the worklist read as many rows as they show, not as there are."""
    many = 50_000
    with place.open() as store:
        case_id = store.create_case("many")
        drafts = [draft(f"{i}", confidence=1 - i / (2 * many), measurement=None) for i in range(many)]
        store.add_run(case_id, make_run(), drafts)
        read = 0

        def count(row: object, _context: object) -> None:
            nonlocal read
            read += 1

        from sagittal.case.schema import FindingRow

        event.listen(FindingRow, "load", count)
        try:
            store.judge(case_id, many, Verdict.REJECTED, who="Dr A")
            store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A")
            assert store.findings(case_id, offset=30_000, limit=10).total == many
            assert store.finding(case_id, 40_000).content.subject == "39999"
            (row,) = store.worklist().rows
        finally:
            event.remove(FindingRow, "load", count)
    assert read == 1 + 1 + 10 + 1
    assert (row.findings, row.undecided, row.worst) == (many - 1, many - 2, "49998: 5 ml")
