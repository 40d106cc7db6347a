"""Commands on what people draw: what to draw next, and taking labels into a case."""

from __future__ import annotations

import getpass
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.core.errors import InputError
from sagittal.core.progress import status
from sagittal.workbench.output import JsonOption, emit, speaks, table

__all__ = ["LabelsOption", "app", "names"]

app = typer.Typer(no_args_is_help=True)

LabelsOption = Annotated[str, typer.Option(help="Names of the values 1, 2, …, with commas.")]
CasesOption = Annotated[
    str | None,
    typer.Option(
        "--cases",
        "--store",
        help="The case store: a folder, or postgresql://…",
        envvar="SAGITTAL_STORE",
        show_default="in your data folder",
    ),
]
_PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}


@app.command("next")
@speaks
def next_(
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that 'segment train' has written; several are an ensemble."),
    ] = None,
    cases: CasesOption = None,
    budget_minutes: Annotated[float | None, typer.Option(help="Minutes that may be spent.")] = None,
    budget_number: Annotated[int | None, typer.Option(help="Or how many, whatever they take.")] = None,
    unit: Annotated[
        str, typer.Option(help="What is annotated at a time: volume, slice or patch.")
    ] = "volume",
    plane: Annotated[str, typer.Option(help=f"Of slices: {', '.join(_PLANES)}.")] = "axial",
    method: Annotated[
        str,
        typer.Option(
            help="weighted-cover, uncertainty+cover, uncertainty, entropy, cover, core-set or random."
        ),
    ] = "weighted-cover",
    with_unlike: Annotated[
        bool,
        typer.Option(
            "--with-unlike",
            help="Choose also among cases that look unlike all others, such as spoilt images.",
        ),
    ] = False,
    page: Annotated[Path | None, typer.Option(help="File for the page with pictures.")] = None,
    proposals: Annotated[
        Path | None, typer.Option(help="Folder for image and proposed labels of each case, to correct.")
    ] = None,
    atlas: Annotated[
        str, typer.Option(help="What heads are registered to for jacobian and curl: an asset or a file.")
    ] = "mni152-t1",
    seed: Annotated[int, typer.Option(help="Of a choice by chance.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what to annotate next, in how many minutes, and why."""
    from sagittal.annotation import Budget, Method, Unit
    from sagittal.case.location import open_store
    from sagittal.workflow.annotation_networks import UncertaintyMaps, read_networks
    from sagittal.workflow.annotation_proposals import UNKNOWN, require_new_folder, write_proposals
    from sagittal.workflow.annotation_store import store_queue
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.network_input import wants_field
    from sagittal.workflow.runner import Runner
    from sagittal.workflow.steps.registration import to_atlas

    budget = Budget(number=budget_number, minutes=budget_minutes)
    axis = _PLANES[_one_of(plane, list(_PLANES), "--plane")]
    parts = Unit(_one_of(unit, list(Unit), "--unit"))
    how = Method(_one_of(method, list(Method), "--method"))
    networks = read_networks(model or [])
    if proposals is not None:
        require_new_folder(proposals)
    step = to_atlas(atlas)
    writes = proposals is not None or wants_field(networks.config.channels)
    with (
        tempfile.TemporaryDirectory(prefix="sagittal-") as folder,
        open_store(cases, read_only=not writes) as store,
        status(quiet=as_json) as report,
    ):
        maps = UncertaintyMaps(Path(folder))
        runner = Runner(store=store, shelf=ModelShelf(), report=report)
        queue, pending = store_queue(
            runner,
            networks,
            step,
            budget=budget,
            unit=parts,
            method=how,
            with_unlike=with_unlike,
            axis=axis,
            seed=seed,
            keep=None if page is None else maps.keep,
        )
        files = (
            {} if proposals is None else write_proposals(runner, networks, step, queue, pending, proposals)
        )
        if page is not None:
            from sagittal.workflow.export.queue_page import aside_pictures, queue_pictures, write_queue_page

            write_queue_page(
                queue,
                queue_pictures(queue, pending, maps.of, axis=axis, report=report),
                page,
                store=store.source,
                model=", ".join(str(path) for path in model or []),
                axis=axis,
                proposals=files,
                aside=aside_pictures(queue, pending, maps.of, axis=axis),
            )
    result = {
        **queue.to_json(),
        "page": None if page is None else str(page.absolute()),
        "proposals": {case: str(path.absolute()) for case, path in files.items()},
    }

    def text() -> None:
        table(
            ["", "case", "label", *([] if parts is Unit.VOLUME else [unit]), "minutes", "between", "why"],
            [
                [
                    place,
                    item.case,
                    item.label,
                    *([] if parts is Unit.VOLUME else [item.place(axis)]),
                    f"{item.minutes.value:.1f}",
                    f"{item.minutes.low:.1f} and {item.minutes.high:.1f}",
                    item.reason,
                ]
                for place, item in enumerate(queue.items, 1)
            ],
        )
        typer.echo(queue.summary)
        for note in queue.notes:
            typer.echo(f"note: {note}")
        if page is not None:
            typer.echo(f"page: {page}")
        for case, path in files.items():
            odd = "" if parts is Unit.VOLUME else f" --unknown {UNKNOWN}"
            names = ",".join(networks.config.labels)
            typer.echo(f"correct {path}, then:")
            typer.echo(f"  sagittal annotate import {path} --case {case} --labels {names}{odd} --minutes …")

    emit(result, as_json=as_json, text=text)


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
    cases: CasesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take labels that a person drew into a case, with who drew them and in how many minutes."""
    from sagittal.case.location import open_store
    from sagittal.workflow.annotation import import_annotation

    with open_store(cases) as store:
        found = import_annotation(
            store,
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
        "changed": found.changed,
        **content.details,
    }

    def text() -> None:
        typer.echo(f"finding {result['finding']}: {content.statement}")
        if found.changed == 0:
            typer.echo(
                "note: no voxel differs from what was proposed for this case: a network that is judged by "
                "its own proposal is always right. If nobody has looked at it, reject the finding"
            )

    emit(result, as_json=as_json, text=text)


def names(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas."""
    return tuple(name.strip() for name in text.split(","))


def _one_of(given: str, known: list[str], option: str) -> str:
    if given not in known:
        raise InputError("no such choice", source=option, value=given, expected=", ".join(known))
    return given
