"""The command that makes many cases."""

from __future__ import annotations

import signal
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagittal.core.errors import InputError, StorageError
from sagittal.core.progress import duration, status
from sagittal.workbench.case_commands import StoreOption
from sagittal.workbench.output import JsonOption, emit, speaks, table

if TYPE_CHECKING:
    from sagittal.workflow.batch import BatchResult
    from sagittal.workflow.engines import Engine
    from sagittal.workflow.steps import RegisterToAtlas
    from sagittal.workflow.worker import Setting

__all__ = ["AtlasLabelsOption", "AtlasOption", "batch", "chosen_atlas"]

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

AtlasOption = Annotated[
    str, typer.Option(help="What T1 images are registered to: mni152-t1, or an image of yours.")
]
AtlasLabelsOption = Annotated[
    Path | None, typer.Option(help="Labels on the grid of your atlas, to carry over.")
]


class EngineName(StrEnum):
    """Where the workers run."""

    LOCAL = "local"
    RAY = "ray"


@speaks
def batch(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with a file or a folder for each case.")
    ],
    steps: Annotated[
        str,
        typer.Option(
            help="Steps, with commas between: tissue, tissue-network, atlas, ct, simulated-ct, "
            "simulated-atlas, record, report."
        ),
    ] = "tissue,ct,record,report",
    engine: Annotated[EngineName, typer.Option(help="Processes of this machine, or Ray.")] = EngineName.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases at a time.", show_default="the processors")
    ] = None,
    ray_address: Annotated[
        str, typer.Option(help="Running Ray cluster; without one, Ray is started here.")
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="Language model: an asset's name or a folder; 'none' for no model.")
    ] = None,
    atlas: AtlasOption = "",
    atlas_labels: AtlasLabelsOption = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the records; nothing is guessed.")] = "utf-8",
    label_by_name: Annotated[
        bool,
        typer.Option("--label-by-name", help="Call cases like their files; only if these identify nobody."),
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed.")] = False,
    only_status: Annotated[bool, typer.Option("--status", help="Say what is done, and do nothing.")] = False,
    store: StoreOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing; say what is missing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a case of each file and folder in DIR; run again, it does only what is missing."""
    from sagittal.case.location import open_store, resolve
    from sagittal.workflow.batch import Interrupted, batch_tasks, job_results, run_batch
    from sagittal.workflow.engines import processors
    from sagittal.workflow.folder import list_cases
    from sagittal.workflow.models import DEFAULT_MODEL, ModelShelf, model_folder
    from sagittal.workflow.pipeline import stages
    from sagittal.workflow.steps import RegisterToAtlas
    from sagittal.workflow.worker import Setting

    names = stages([name.strip() for name in steps.split(",") if name.strip()])
    registers = chosen_atlas(atlas, atlas_labels)
    if registers and "atlas" not in names:
        raise InputError("no step registers anything to an atlas", source="--atlas", expected="--steps atlas")
    name = "" if model == "none" else model or DEFAULT_MODEL
    location = resolve(store)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with status(quiet=as_json) as report:
            listing = list_cases(folder, names, encoding=encoding, report=report)
            tasks = batch_tasks(
                folder, listing, names, model=name, atlas=registers, label_by_name=label_by_name
            )
            with open_store(location, read_only=only_status) as cases:
                if only_status:
                    result = job_results(cases, tasks, listing)
                else:
                    if name and {"record", "report"} & set(names):
                        model_folder(name, offline=offline or None, report=report)  # once, not in each worker
                    if "atlas" in names:
                        for file in (registers or RegisterToAtlas()).files:
                            ModelShelf(offline=offline or None).file(file, report=report)
                    setting = Setting(store=location, store_id=cases.id, offline=offline or None)
                    result = run_batch(
                        cases,
                        tasks,
                        engine=_engine(engine, setting, workers or processors(), ray_address),
                        listing=listing,
                        retry_failed=retry_failed,
                        report=report,
                    )
    except (Interrupted, KeyboardInterrupt) as stopped:
        left = f"; {stopped}" if isinstance(stopped, Interrupted) else ""
        typer.echo(f"stopped{left}. Run the same command again to go on.", err=True)
        raise typer.Exit(INTERRUPTED) from stopped
    except StorageError:
        typer.echo("The batch stopped. When the store can be written, the same command goes on.", err=True)
        raise
    emit(asdict(result), as_json=as_json, text=lambda: _text(result))
    if result.failed:
        raise typer.Exit(1)


def chosen_atlas(atlas: str, labels: Path | None) -> RegisterToAtlas | None:
    """Return the step for what was given by ``--atlas`` and ``--atlas-labels``, None where nothing was.

    Raises:
        InputError: There is no such file, or labels of no atlas.
    """
    from sagittal.workflow.steps.registration import to_atlas

    if not atlas and labels is not None:
        raise InputError("labels belong to an atlas", source="--atlas-labels", expected="--atlas as well")
    return to_atlas(atlas, "" if labels is None else str(labels)) if atlas else None


def _engine(name: EngineName, setting: Setting, workers: int, ray_address: str) -> Engine:
    from sagittal.workflow.engines import LocalEngine, RayEngine

    if name is EngineName.RAY:
        return RayEngine(setting=setting, workers=workers, address=ray_address)
    if ray_address:
        raise InputError("an address of Ray is of no use to this engine", value=name, expected="--engine ray")
    return LocalEngine(setting=setting, workers=workers)


def _text(result: BatchResult) -> None:
    listed = [case for case in result.cases if case.error or case.state != "done"]
    if listed:
        columns = ["source", "state", "case", "reason"]
        table(columns, [[case.source, case.state, case.case, case.error] for case in listed])
    refused = sum(case.state == "refused" for case in result.cases)
    typer.echo(
        f"batch {result.batch}: {result.done} done, {result.failed} failed, {refused} refused, "
        f"{duration(result.seconds)}"
    )
    if result.failed:
        typer.echo("'--retry-failed' tries again what failed.")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
