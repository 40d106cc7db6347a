"""Commands on what people draw: take labels into a case."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.workbench.case_commands import StoreOption
from sagittal.workbench.output import JsonOption, emit, speaks

__all__ = ["LabelsOption", "app", "names"]

app = typer.Typer(no_args_is_help=True)

LabelsOption = Annotated[str, typer.Option(help="Names of the values 1, 2, …, with commas.")]


@app.callback()
def _root() -> None:
    """Keep the commands' names, also while there is only one."""


@app.command("import")
@speaks
def import_labels(
    labels_file: Annotated[
        Path, typer.Argument(metavar="LABELS", help="Labels on the image's grid: NIfTI, NRRD or MetaImage.")
    ],
    case_id: Annotated[str, typer.Option("--case", help="Id of the case.")],
    minutes: Annotated[float, typer.Option(help="How long it took to draw them.")],
    who: Annotated[str, typer.Option(help="Who drew them.", show_default="your user name")] = "",
    labels: LabelsOption = "csf,gm,wm",
    image: Annotated[str, typer.Option(help="The image that they were drawn on, by its part.")] = "t1",
    unknown: Annotated[
        int | None, typer.Option(help="Value of voxels that nobody has looked at, such as other slices.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take labels that a person drew into a case, with who drew them and in how many minutes."""
    from sagittal.case.location import open_store
    from sagittal.workflow.annotation import import_annotation

    with open_store(store) as cases:
        found = import_annotation(
            cases,
            case_id,
            labels_file,
            labels=names(labels),
            minutes=minutes,
            who=who or getpass.getuser(),
            role=image,
            unknown=unknown,
        )
    content = found.finding.content
    result: dict[str, Any] = {
        "case": case_id,
        "run": found.run.number,
        "finding": found.finding.number,
        "replaced": found.replaced,
        **content.details,
    }
    emit(
        result, as_json=as_json, text=lambda: typer.echo(f"finding {result['finding']}: {content.statement}")
    )


def names(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas."""
    return tuple(name.strip() for name in text.split(","))
