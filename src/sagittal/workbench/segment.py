"""Commands on segmentation networks: train one on labelled cases, use it on a case, judge it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.core.errors import InputError
from sagittal.core.files import write_bytes, write_text
from sagittal.core.progress import status
from sagittal.workbench.annotate import LabelsOption, names
from sagittal.workbench.output import JsonOption, emit, speaks, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

CasesOption = Annotated[
    str | None,
    typer.Option(
        "--cases",
        help="The case store: a folder, or postgresql://…",
        envvar="SAGITTAL_STORE",
        show_default="in your data folder",
    ),
]
AtlasOption = Annotated[
    str, typer.Option(help="What heads are registered to for jacobian and curl: an asset or a file.")
]
ModelArgument = Annotated[Path, typer.Argument(help="The folder that 'segment train' has written.")]


@app.command()
@speaks
def train(
    out: Annotated[Path, typer.Option(help="Folder for the model; a training begun there goes on.")],
    cases: CasesOption = None,
    labels: LabelsOption = "csf,gm,wm",
    channels: Annotated[
        str, typer.Option(help="Images by their part in the case, then jacobian and curl.")
    ] = "t1",
    architecture: Annotated[str, typer.Option(help="voxresnet or residual-unet.")] = "voxresnet",
    dimensions: Annotated[str, typer.Option(help="2, 2.5 (with neighbouring slices) or 3.")] = "3",
    width: Annotated[int, typer.Option(min=1, help="Channels at full resolution.")] = 16,
    depth: Annotated[int, typer.Option(min=1, help="How often the resolution is halved.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 1000,
    batch: Annotated[int | None, typer.Option(min=1, help="Patches a step.")] = None,
    rate: Annotated[float, typer.Option(help="Of learning, at the first step.")] = 1e-2,
    held_out: Annotated[
        int | None, typer.Option(help="Subjects that judge the model.", show_default="a fifth, at least 1")
    ] = None,
    atlas: AtlasOption = "mni152-t1",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a network on the cases that a person has labelled; killed and called again, it goes on."""
    from sagittal.case.location import open_store
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.runner import Runner
    from sagittal.workflow.segment_training import TrainingPlan, train_on_store
    from sagittal.workflow.steps.registration import to_atlas

    kinds: dict[str, Any] = {"2": 2, "2.5": "2.5", "3": 3}
    if dimensions not in kinds:
        raise InputError("a network has other dimensions", value=dimensions, expected=", ".join(kinds))
    plan = TrainingPlan(
        labels=names(labels),
        channels=names(channels),
        architecture=architecture,
        dimensions=kinds[dimensions],
        width=width,
        depth=depth,
        steps=steps,
        batch=batch,
        rate=rate,
        held_out=held_out,
        seed=seed,
    )
    with open_store(cases) as store, status(quiet=as_json) as report:
        runner = Runner(store=store, shelf=ModelShelf(), report=report)
        result = train_on_store(runner, out, plan, to_atlas(atlas), report=report)

    def text() -> None:
        held = result["held_out"]
        typer.echo(f"{result['model']}: {len(result['subjects'])} subjects, {result['steps']} steps")
        typer.echo(f"loss {result['loss_first']:.4f} at first, {result['loss_last']:.4f} at last")
        table(
            ["held out", *held["dice"]],
            [[one["subject"], *(f"{d:.3f}" for d in one["dice"].values())] for one in held["subjects"]],
        )
        typer.echo(_interval(held))
        if held["ece"] is not None:
            typer.echo(f"calibration error {held['ece']:.4f}, each subject by the temperatures of the others")
        volumes = held["volumes"]
        if "why_not" in volumes:
            typer.echo(f"volumes have the interval of their probabilities alone: {volumes['why_not']}")
        elif volumes["of"]:
            typer.echo(
                f"volumes: {volumes['held']} of {volumes['of']} intervals of the others hold the labels'"
            )

    emit(result, as_json=as_json, text=text)


@app.command()
@speaks
def predict(
    model: ModelArgument,
    case_id: Annotated[str, typer.Option("--case", help="Id of the case.")],
    cases: CasesOption = None,
    atlas: AtlasOption = "mni152-t1",
    exact: Annotated[
        bool, typer.Option("--exact", help="float32, where bfloat16 would be faster on this processor.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Segment a case with a trained network: probabilities, and volumes with intervals as findings."""
    from sagittal.case.location import open_store
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.runner import Runner
    from sagittal.workflow.segment_prediction import predict_case
    from sagittal.workflow.steps.registration import to_atlas

    with open_store(cases) as store, status(quiet=as_json) as report:
        runner = Runner(store=store, shelf=ModelShelf(), report=report)
        run = predict_case(runner, case_id, model, to_atlas(atlas), exact=exact)
        found = [f for f in store.case(case_id).findings if f.run == run.number]
    result = {
        "case": case_id,
        "run": run.number,
        "findings": [{"number": f.number, **f.content.to_json()} for f in found],
    }

    def text() -> None:
        for finding in found:
            typer.echo(f"{finding.number}: {finding.content.statement}")
            if finding.content.caution:
                typer.echo(f"   {finding.content.caution}")

    emit(result, as_json=as_json, text=text)


@app.command()
@speaks
def evaluate(
    model: ModelArgument,
    cases: CasesOption = None,
    atlas: AtlasOption = "mni152-t1",
    out: Annotated[Path | None, typer.Option("--json", help="File for everything, as JSON.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="File for a page: training, the worst cases first, reliability.")
    ] = None,
) -> None:
    """Judge a trained network on the labelled cases that it has not seen; the worst come first."""
    from sagittal.case.location import open_store
    from sagittal.workflow.export.evaluation_page import Album, write_evaluation_page
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.runner import Runner
    from sagittal.workflow.segment_evaluation import evaluate_on_store
    from sagittal.workflow.segment_training import training_history
    from sagittal.workflow.steps.registration import to_atlas

    with open_store(cases) as store, status() as report:
        runner = Runner(store=store, shelf=ModelShelf(), report=report)
        album = Album() if page else None
        result = evaluate_on_store(
            runner, model, to_atlas(atlas), show=album.add if album else None, report=report
        )
    if page is not None and album is not None:
        write_evaluation_page(result, training_history(model), album, page)
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")
    labels = list(result["dice"])
    table(
        ["case", *(f"dice {name}" for name in labels), *(f"hd95 {name}, mm" for name in labels)],
        [
            [
                one["case"],
                *(f"{one['labels'][name]['dice']:.3f}" for name in labels),
                *(_mm(one["labels"][name]["hd95_mm"]) for name in labels),
            ]
            for one in result["cases"]
        ],
    )
    typer.echo(_interval(result))
    low, high = (100 * share for share in result["volume_interval_coverage_interval"])
    typer.echo(
        f"volumes: {result['volume_intervals_held']} of {result['volume_intervals']} intervals of 95 % hold "
        f"the labels'; 95 % interval of that share {low:.0f} to {high:.0f} %"
    )
    if same := result["as_proposed"]:
        others = result["dice_mean_of_others"]
        typer.echo(
            f"note: in {len(same)} of {len(result['cases'])} cases nobody changed a voxel of what networks "
            f"proposed ({', '.join(same)}), in {len(result['as_proposed_by_itself'])} of this network's own; "
            + ("there are no others" if others is None else f"mean Dice of the others {others:.3f}")
            + ("; volumes leave its own out" if len(result["calibrated_on"]) < len(result["cases"]) else "")
        )


@app.command("export-onnx")
@speaks
def export_onnx(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="File to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write a trained network as ONNX; its scale and temperatures stay in the model's file."""
    from sagittal.segmentation.network_file import onnx_bytes
    from sagittal.workflow.segment_prediction import model_file, read_model

    path = model_file(model)
    found = read_model(path)
    write_bytes(out, onnx_bytes(found))
    result = {"onnx": str(out.absolute()), "model": str(path.absolute()), "config": found.config.to_json()}
    emit(
        result,
        as_json=as_json,
        text=lambda: typer.echo(f"{out}: from channels {', '.join(found.config.channels)} to logits"),
    )


def _interval(said: dict[str, Any]) -> str:
    """Say how good it is on all, and between what the median of all people's Dice lies."""
    text = f"mean Dice {said['dice_mean']:.3f}"
    if said["dice_interval"] is not None:
        low, high = said["dice_interval"]
        return f"{text}; 95 % interval of the median subject's {low:.3f} to {high:.3f}"
    return f"{text}; no interval: {said['for_an_interval']}"


def _mm(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
