"""Commands on the store as a whole, and on cases as files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sagittal.case.archive import export_archive, import_case
from sagittal.case.backup import backup as back_up
from sagittal.case.garbage import GRACE_SECONDS, collect
from sagittal.case.location import open_store
from sagittal.core.progress import status
from sagittal.workbench.case_commands import CaseArgument, StoreOption, app
from sagittal.workbench.output import JsonOption, emit, speaks

__all__: list[str] = []


@app.command()
@speaks
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    grace: Annotated[float, typer.Option(help="Leave what is younger than so many seconds.")] = GRACE_SECONDS,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the contents that no run refers to, and what an interrupted writer left."""
    with open_store(store, read_only=dry_run) as cases:
        found = collect(cases, dry_run=dry_run, grace_seconds=grace)

    def text() -> None:
        verb = "would remove" if dry_run else "removed"
        typer.echo(
            f"{verb} {len(found.contents)} contents and {found.temporaries} unfinished files, "
            f"{found.bytes / 1e6:.1f} MB; {found.young} too young to remove"
        )

    emit({**asdict(found), "dry_run": dry_run}, as_json=as_json, text=text)


@app.command("export")
@speaks
def export_one(
    case_id: CaseArgument,
    out: Annotated[Path, typer.Option(help="File to write, a .zip archive.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a case, its record and its contents, to one file that another store can import."""
    with open_store(store, read_only=True) as cases:
        path = export_archive(cases, case_id, out)
    result = {"case": case_id, "archive": str(path.absolute()), "bytes": path.stat().st_size}
    emit(result, as_json=as_json, text=lambda: typer.echo(f"archive: {result['archive']}"))


@app.command("import")
@speaks
def import_one(
    archive: Annotated[Path, typer.Argument(help="Archive that 'sagittal case export' wrote.")],
    who: Annotated[str, typer.Option(help="Who brings it, for the audit.")] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a case from an archive into the store."""
    with open_store(store) as cases:
        found = import_case(cases, archive, who=who)

    def text() -> None:
        typer.echo(f"case:   {found.case_id}" + ("" if found.new else ", already there and identical"))

    emit({"case": found.case_id, "new": found.new}, as_json=as_json, text=text)


@app.command()
@speaks
def backup(
    folder: Annotated[Path, typer.Argument(help="New folder for the copy.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the store while others write to it; exit status 1 when it has lost a content."""
    with open_store(store, read_only=True) as cases, status(quiet=as_json) as report:
        done = back_up(cases, folder, report=report)
    result = {"store": str(done.folder.absolute()), "contents": done.contents, "bad": list(done.bad)}

    def text() -> None:
        typer.echo(f"store:  {result['store']} with {done.contents} contents")
        for problem in done.bad:
            typer.echo(f"lost:   {problem}")

    emit(result, as_json=as_json, text=text)
    if done.bad:
        raise typer.Exit(1)
