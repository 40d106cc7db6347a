"""Commands on cases."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagittal.case.location import open_store
from sagittal.case.record import FindingDraft, Verdict
from sagittal.case.store import CaseStore
from sagittal.case.worklist import ORDERS, STATES
from sagittal.core.progress import status
from sagittal.workbench.output import JsonOption, emit, speaks, table

if TYPE_CHECKING:
    from sagittal.workbench.client import Client

__all__ = ["CaseArgument", "StoreOption", "app", "summary"]

app = typer.Typer(no_args_is_help=True)

StoreOption = Annotated[
    str | None,
    typer.Option(
        help="The case store: a folder, or postgresql://…",
        envvar="SAGITTAL_STORE",
        show_default="in your data folder",
    ),
]
DeskOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="The case store: a folder, postgresql://…, or the URL that 'sagittal serve' printed.",
        envvar="SAGITTAL_STORE",
        show_default="in your data folder",
    ),
]
CaseArgument = Annotated[str, typer.Argument(help="Id of the case.")]
NumberArgument = Annotated[int, typer.Argument(help="Number of the finding.")]
WhoOption = Annotated[str, typer.Option(help="Who says so.")]
NoteOption = Annotated[str, typer.Option(help="Why.")]


@app.command("list")
@speaks
def list_cases(
    search: Annotated[str, typer.Option(help="Only cases whose label or id holds these words.")] = "",
    state: Annotated[str | None, typer.Option(help=f"Only {', '.join(STATES)} cases.")] = None,
    order: Annotated[str, typer.Option(help=f"By {', '.join(ORDERS)}; the worst doubt first.")] = "doubt",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 50,
    store: DeskOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the cases of the store, the worst doubt first."""
    with _desk(store) as cases:
        found = cases.worklist(search=search, state=state, order=order, limit=limit)

    def text() -> None:
        columns = ["case", "label", "state", "findings", "undecided", "doubt", "worst", "changed"]
        rows = [
            [c.id, c.label, c.state, c.findings, c.undecided, _share(c.doubt), c.worst, c.changed]
            for c in found.rows
        ]
        table(columns, rows)
        if found.total > len(found.rows):
            typer.echo(f"{len(found.rows)} of {found.total} cases")

    emit(asdict(found), as_json=as_json, text=text)


@app.command()
@speaks
def show(case_id: CaseArgument, store: DeskOption = None, as_json: JsonOption = False) -> None:
    """Show the findings of a case, with where each came from and where it stands."""
    with _desk(store) as cases:
        case = cases.case(case_id)

    def text() -> None:
        typer.echo(f"{case.id}  {case.label}  {case.created}")
        table(
            ["", "state", "from", "finding"],
            [[f.number, f.state, f.author, f.content.statement] for f in case.findings],
        )

    emit(asdict(case), as_json=as_json, text=text)


@app.command()
@speaks
def replay(case_id: CaseArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Run every step of a case again and compare the hashes; exit status 1 when one differs."""
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.replay import replay as run_again

    with _open(store, writes=True) as cases, status(quiet=as_json) as report:
        runs = run_again(cases, case_id, shelf=ModelShelf(), report=report)
    same = all(not run.differences for run in runs)
    result: dict[str, Any] = {"case": case_id, "identical": same, "runs": [asdict(run) for run in runs]}

    def text() -> None:
        for run in runs:
            typer.echo(f"{run.run} {run.step}: {'differs' if run.differences else 'identical'}")
            for difference in run.differences:
                typer.echo(f"  {difference.what}: {difference.recorded} -> {difference.replayed}")
            for digest in run.hashes:
                typer.echo(f"  {digest}")

    emit(result, as_json=as_json, text=text)
    if not same:
        raise typer.Exit(1)


@app.command()
@speaks
def accept(
    case_id: CaseArgument,
    number: NumberArgument,
    who: WhoOption,
    note: NoteOption = "",
    store: DeskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a finding."""
    _judge(case_id, number, Verdict.ACCEPTED, who, note, store, as_json)


@app.command()
@speaks
def reject(
    case_id: CaseArgument,
    number: NumberArgument,
    who: WhoOption,
    note: NoteOption = "",
    store: DeskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reject a finding; it stays in the record, and reports leave it out from then on."""
    _judge(case_id, number, Verdict.REJECTED, who, note, store, as_json)


@app.command()
@speaks
def supersede(
    case_id: CaseArgument,
    number: NumberArgument,
    statement: Annotated[str, typer.Option(help="What is to be said instead.")],
    who: WhoOption,
    note: NoteOption = "",
    store: DeskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a statement of your own in the place of a finding; the old one stays in the record."""
    with _desk(store, writes=True) as cases:
        old = cases.finding(case_id, number).content
        draft = FindingDraft(code=old.code, subject=old.subject, statement=statement)
        new = cases.supersede(case_id, number, draft, who=who, note=note)
    result = {"case": case_id, "finding": number, "successor": new.number, "who": who}
    emit(
        result,
        as_json=as_json,
        text=lambda: typer.echo(f"finding {number}: superseded by {new.number}, {who}"),
    )


@app.command()
@speaks
def report(
    case_id: CaseArgument,
    out: Annotated[Path, typer.Option(help="Folder for the report and everything that belongs to it.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draft the report again from the findings that stand now, and write the case to a folder."""
    from sagittal.workflow.export import export_case
    from sagittal.workflow.models import DEFAULT_MODEL, ModelShelf
    from sagittal.workflow.runner import Runner
    from sagittal.workflow.steps import DraftReport

    with _open(store, writes=True) as cases, status(quiet=as_json) as say:
        before = [run for run in cases.case(case_id).runs if run.step == DraftReport.name]
        model = before[-1].parameters["model"] if before else DEFAULT_MODEL
        Runner(store=cases, shelf=ModelShelf(), report=say).run(case_id, DraftReport(model=model))
        exported = export_case(cases, case_id, out, report=say)
        result = summary(cases, case_id, exported.report)
    emit(result, as_json=as_json, text=lambda: typer.echo(f"report: {result['report']}"))


def summary(store: CaseStore, case_id: str, page: Path) -> dict[str, Any]:
    """Return what a run prints: case, report, number of findings, tissue volumes and the cache's bytes."""
    case = store.case(case_id)
    volumes = {
        f.content.details["tissue"]: {
            "value": round(f.content.measurement.value, 3),
            "low": round(f.content.measurement.low, 3),
            "high": round(f.content.measurement.high, 3),
        }
        for f in case.standing("tissue.volume")
        if f.content.measurement
    }
    caches = [f.content.details["cache"] for f in case.standing("record.reading")]
    return {
        "case": case_id,
        "report": str(page.absolute()),
        "findings": len(case.standing()),
        "tissue_ml": volumes,
        "cache": caches[-1] if caches else None,
    }


def _share(doubt: float | None) -> str:
    return "-" if doubt is None else f"{100 * doubt:.0f} %"


def _judge(
    case_id: str, number: int, verdict: Verdict, who: str, note: str, store: str | None, as_json: bool
) -> None:
    with _desk(store, writes=True) as cases:
        cases.judge(case_id, number, verdict, who=who, note=note)
    result = {"case": case_id, "finding": number, "state": verdict.value, "who": who}
    emit(result, as_json=as_json, text=lambda: typer.echo(f"finding {number}: {verdict.value} by {who}"))


def _desk(store: str | None, *, writes: bool = False) -> CaseStore | Client:
    """What reads and judges: the store, or a server whose client has the same methods."""
    named = store or os.environ.get("SAGITTAL_STORE", "")
    if named.startswith(("http://", "https://")):
        from sagittal.workbench.client import Client

        return Client(named)
    return _open(store, writes=writes)


def _open(store: str | None, *, writes: bool = False) -> CaseStore:
    return open_store(store, read_only=not writes)
