"""Commands on image archives, and on DICOM files that are to leave the house."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.case.location import open_store
from sagittal.case.store import CaseStore
from sagittal.core.progress import Report, status
from sagittal.workbench import case_commands
from sagittal.workbench.case_commands import StoreOption
from sagittal.workbench.output import JsonOption, emit, speaks, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

UrlArgument = Annotated[str, typer.Argument(help="Address, such as http://127.0.0.1:8042/dicom-web.")]
WhoOption = Annotated[str, typer.Option(help="Who asks for it, for the audit.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for each answer.")]


@app.command("list")
@speaks
def list_studies(
    url: UrlArgument,
    study: Annotated[str, typer.Option(help="Study Instance UID.")] = "",
    patient_id: Annotated[str, typer.Option(help="Patient ID.")] = "",
    date: Annotated[str, typer.Option(help="Day YYYYMMDD, or a range YYYYMMDD-YYYYMMDD.")] = "",
    modality: Annotated[str, typer.Option(help="Modality in the study, such as MR.")] = "",
    description: Annotated[str, typer.Option(help="Study description; * stands for anything.")] = "",
    limit: Annotated[int, typer.Option(help="Most studies to list.", min=1)] = 100,
    offset: Annotated[int, typer.Option(help="Studies to skip, in the archive's order.", min=0)] = 0,
    series: Annotated[bool, typer.Option("--series", help="List each study's series too.")] = False,
    show_identity: Annotated[
        bool, typer.Option("--show-identity", help="Show name, identifier and birth date.")
    ] = False,
    timeout: TimeoutOption = 60,
    as_json: JsonOption = False,
) -> None:
    """List the studies of an archive, without saying whose they are."""
    from sagittal.workflow.dicomweb import Archive

    archive = Archive.from_environment(url, timeout=timeout)
    studies = archive.find_studies(
        uid=study,
        patient_id=patient_id,
        date=date,
        modality=modality,
        description=description,
        limit=limit,
        offset=offset,
        identity=show_identity,
    )
    rows: list[dict[str, Any]] = []
    for one in studies:
        row = {**asdict(one), "modalities": list(one.modalities)}
        if not show_identity:
            del row["identity"]
        if series:
            row["in_series"] = [asdict(each) for each in archive.find_series(one.uid)]
        rows.append(row)

    def text() -> None:
        columns = ["date", "modalities", "description", "images", "study"]
        shown = [
            [
                row["date"],
                ",".join(row["modalities"]),
                row["description"],
                _known(row["instances"]),
                row["uid"],
            ]
            for row in rows
        ]
        if show_identity:
            columns += ["name", "patient id", "born"]
            for line, row in zip(shown, rows, strict=True):
                line.extend(row["identity"].values())
        table(columns, shown)
        for row in rows:
            for each in row.get("in_series", []):
                typer.echo(
                    f"  {each['modality']}  {_known(each['instances'])}  {each['description']}  {each['uid']}"
                )

    emit(rows, as_json=as_json, text=text)


@case_commands.app.command("fetch")
@speaks
def fetch(
    url: UrlArgument,
    study: Annotated[str, typer.Argument(help="Study Instance UID.")],
    series: Annotated[
        list[str] | None,
        typer.Option(help="Series Instance UID to take; may be given once for MR and for CT."),
    ] = None,
    label: Annotated[str, typer.Option(help="What to call the case; should identify nobody.")] = "case",
    run: Annotated[bool, typer.Option("--run", help="Also measure, and draft the report by rules.")] = False,
    who: WhoOption = "",
    timeout: TimeoutOption = 60,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a study's T1 image or CT slice from an archive and make a case of it."""
    from sagittal.workflow.dicomweb import Archive
    from sagittal.workflow.exchange import fetch_case, measure

    archive = Archive.from_environment(url, timeout=timeout)
    with open_store(store) as cases, status(quiet=as_json) as say:
        runner = _runner(cases, say)
        fetched = fetch_case(runner, archive, study, series=series or (), label=label, who=who)
        if run:
            measure(runner, fetched.case, list(fetched.roles))
    result = {
        "case": fetched.case,
        "roles": {
            role: {"series": one.uid, "instances": fetched.instances[role]}
            for role, one in fetched.roles.items()
        },
        "left": [one.uid for one in fetched.left],
        "measured": run,
    }

    def text() -> None:
        typer.echo(f"case:   {fetched.case}")
        for role, one in fetched.roles.items():
            typer.echo(
                f"{role}:     {fetched.instances[role]} {one.modality} images, {one.description}  {one.uid}"
            )
        typer.echo(f"left:   {len(fetched.left)} other series of the study")

    emit(result, as_json=as_json, text=text)


@case_commands.app.command("send")
@speaks
def send(
    case_id: case_commands.CaseArgument,
    url: UrlArgument,
    who: WhoOption = "",
    timeout: TimeoutOption = 60,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a case's segmentations and findings to an archive, and read them again to be sure."""
    from sagittal.workflow.dicomweb import Archive
    from sagittal.workflow.exchange import send_case

    archive = Archive.from_environment(url, timeout=timeout)
    with open_store(store) as cases, status(quiet=as_json) as say:
        sent = send_case(_runner(cases, say), archive, case_id, who=who)
    rows = [asdict(one) for one in sent]
    emit(
        {"case": case_id, "stored": rows},
        as_json=as_json,
        text=lambda: table(
            ["", "objects", "of them there before"],
            [
                [kind, len(same), sum(one.was_there for one in same)]
                for kind in dict.fromkeys(one.kind for one in sent)
                for same in [[one for one in sent if one.kind == kind]]
            ],
        ),
    )


@case_commands.app.command("deidentify")
@speaks
def deidentify_files(
    path: Annotated[Path, typer.Argument(help="DICOM file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    keep_dates: Annotated[
        bool, typer.Option("--keep-dates", help="Keep dates and times; not of birth.")
    ] = False,
    keep_characteristics: Annotated[
        bool, typer.Option("--keep-characteristics", help="Keep sex, age, size, weight and the like.")
    ] = False,
    keep_device: Annotated[bool, typer.Option("--keep-device", help="Keep which device it was.")] = False,
    keep_uids: Annotated[
        bool, typer.Option("--keep-uids", help="Keep UIDs: whoever has the originals can link them.")
    ] = False,
    pixels_checked: Annotated[
        bool, typer.Option("--pixels-checked", help="You have looked: the pixels show no name.")
    ] = False,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out what cannot be made safe.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write DICOM files without what says who the patient is (PS3.15 basic profile)."""
    from sagittal.workflow.deidentify import deidentify, secret_from_environment

    options = {
        "dates": keep_dates,
        "characteristics": keep_characteristics,
        "device": keep_device,
        "uids": keep_uids,
    }
    with status(quiet=as_json) as say:
        done = deidentify(
            path,
            out,
            keep=[name for name, chosen in options.items() if chosen],
            secret=secret_from_environment(),
            pixels_checked=pixels_checked,
            leave_out=leave_out,
            report=say,
        )
    result = {**asdict(done), "folder": str(done.folder.absolute())}

    def text() -> None:
        typer.echo(f"files:    {done.files} of {done.patients} patients, in {result['folder']}")
        for reason, count in done.left_out.items():
            typer.echo(f"left out: {count}, {reason}")

    emit(result, as_json=as_json, text=text)


def _runner(store: CaseStore, report: Report) -> Any:
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.runner import Runner

    return Runner(store=store, shelf=ModelShelf(), report=report)


def _known(number: int | None) -> str:
    return "" if number is None else str(number)
