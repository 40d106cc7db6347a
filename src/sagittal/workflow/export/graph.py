"""The provenance of a case as a drawing: runs as boxes, contents as lines between them."""

from __future__ import annotations

from dataclasses import dataclass

from sagittal.case.record import Case, Run

__all__ = ["Box", "Graph", "Line", "provenance_graph"]

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 196, 62, 46, 16


@dataclass(frozen=True, kw_only=True)
class Box:
    """A run: where its box stands and what it says."""

    run: Run
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """A content, or findings, that one run made and another one read."""

    source: int
    target: int
    label: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A drawing of ``width`` by ``height`` pixels."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: int
    height: int


def provenance_graph(case: Case) -> Graph:
    """Lay out the runs of a case in columns by how many runs stand between them and the files."""
    made_by: dict[str, Run] = {}
    edges: list[tuple[Run, Run, str]] = []
    finding_runs = {finding.number: finding.run for finding in case.findings}
    depth: dict[int, int] = {}
    by_number = {run.number: run for run in case.runs}
    for run in case.runs:
        mine = [
            (made_by[i.content + i.role], run, i.role) for i in run.inputs if i.content + i.role in made_by
        ]
        sources = dict.fromkeys(finding_runs[number] for number in run.used)
        for number in sources:
            if number is not None:
                count = sum(finding_runs[used] == number for used in run.used)
                mine.append((by_number[number], run, f"{count} finding{'s' * (count > 1)}"))
        depth[run.number] = 1 + max((depth[source.number] for source, _, _ in mine), default=-1)
        edges += mine
        made_by |= {output.content + output.role: run for output in run.outputs}
    columns: dict[int, list[Run]] = {}
    for run in case.runs:
        columns.setdefault(depth[run.number], []).append(run)
    tallest = max((len(column) for column in columns.values()), default=1)
    height = tallest * (_HEIGHT + _GAP_Y) - _GAP_Y
    boxes = {}
    for level, column in columns.items():
        top = (height - (len(column) * (_HEIGHT + _GAP_Y) - _GAP_Y)) // 2
        for row, run in enumerate(column):
            boxes[run.number] = Box(
                run=run,
                x=level * (_WIDTH + _GAP_X),
                y=top + row * (_HEIGHT + _GAP_Y),
                width=_WIDTH,
                height=_HEIGHT,
            )
    lines = tuple(
        Line(
            source=source.number,
            target=target.number,
            label=label,
            path=_curve(boxes[source.number], boxes[target.number]),
        )
        for source, target, label in edges
    )
    width = (max(columns, default=0) + 1) * (_WIDTH + _GAP_X) - _GAP_X
    return Graph(boxes=tuple(boxes.values()), lines=lines, width=width, height=height)


def _curve(source: Box, target: Box) -> str:
    x1, y1 = source.x + source.width, source.y + source.height // 2
    x2, y2 = target.x, target.y + target.height // 2
    bend = max((x2 - x1) // 2, 16)
    return f"M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"
