"""Commands on pinned assets."""

from __future__ import annotations

from typing import Annotated

import typer

from sagittal.core import assets
from sagittal.core.progress import status
from sagittal.workbench.output import JsonOption, emit, speaks, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

NamesArgument = Annotated[list[str] | None, typer.Argument(help="Names; all without one.")]


@app.command("list")
@speaks
def list_assets(as_json: JsonOption = False) -> None:
    """List the assets: what they are, how large, under which licence, and whether they are here."""
    rows = [
        {
            "name": a.name,
            "here": assets.locate(a) is not None,
            "bytes": a.size,
            "what": a.what,
            "licence": a.licence,
            "sha256": a.sha256,
            "sources": [str(source) for source in a.sources],
        }
        for a in assets.REGISTRY.values()
    ]

    def text() -> None:
        table(
            ["name", "here", "MB", "what", "licence"],
            [
                [a.name, "yes" if assets.locate(a) else "no", f"{a.size / 1e6:.1f}", a.what, a.licence]
                for a in assets.REGISTRY.values()
            ],
        )

    emit(rows, as_json=as_json, text=text)


@app.command()
@speaks
def get(
    names: NamesArgument = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    allow_hub: Annotated[bool, typer.Option("--allow-hub", help="Also ask a model hub.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch assets that are not here yet and check them."""
    paths = {}
    with status(quiet=as_json) as report:
        for wanted in _wanted(names):
            report(f"fetching {wanted.name}")
            paths[wanted.name] = str(assets.fetch(wanted, offline=offline or None, allow_hub=allow_hub))
    emit(paths, as_json=as_json, text=lambda: table(["name", "path"], list(paths.items())))


@app.command()
@speaks
def verify(names: NamesArgument = None, as_json: JsonOption = False) -> None:
    """Check the sha256 of the assets that are here; with names, those must be here."""
    found = [a for a in _wanted(names) if names or assets.locate(a)]
    paths = {wanted.name: str(assets.verify(wanted)) for wanted in found}
    emit(paths, as_json=as_json, text=lambda: table(["verified", "path"], list(paths.items())))


@app.command()
@speaks
def where(names: NamesArgument = None, as_json: JsonOption = False) -> None:
    """Say where assets lie, or will lie."""
    paths = {wanted.name: str(wanted.path) for wanted in _wanted(names)}
    emit(paths, as_json=as_json, text=lambda: table(["name", "path"], list(paths.items())))


def _wanted(names: list[str] | None) -> list[assets.Asset]:
    return [assets.asset(name) for name in names] if names else list(assets.REGISTRY.values())
