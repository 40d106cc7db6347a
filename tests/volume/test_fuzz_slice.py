"""A few hundred bent files for each reader: what evidence/fuzz.py does for longer, without atheris."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("nibabel")
pytest.importorskip("pydicom.pixels")
pytest.importorskip("SimpleITK")

from fuzz_doors import visit
from fuzz_inputs import seeds
from fuzz_kept import KEPT, Kept
from fuzz_mutations import mutate

ROUNDS = 12
COUNT = 300
LONGEST = 8192


def bent(target: str, number: int) -> bytes:
    rng = random.Random(number)
    data = rng.choice(seeds(target))
    for _ in range(rng.randint(1, 3)):
        data = mutate(target, data, LONGEST, rng)
    return data


@pytest.mark.parametrize("target", ["nifti", "dicom", "itk"])
def test_the_files_to_start_from_are_read(target: str, tmp_path: Path) -> None:
    outcomes = [visit(target, data, tmp_path) for data in seeds(target)]
    assert [finding for finding, _ in outcomes if finding] == []
    assert sum(outcome == "accepted" for _, outcome in outcomes) >= len(outcomes) - 2  # detached, unplaced


@pytest.mark.parametrize("start", range(ROUNDS))
@pytest.mark.parametrize("target", ["nifti", "dicom", "itk"])
def test_a_bent_file_is_read_or_refused(target: str, start: int, tmp_path: Path) -> None:
    count = COUNT // ROUNDS
    outcomes = set()
    for number in range(start * count, (start + 1) * count):
        finding, outcome = visit(target, bent(target, number), tmp_path)
        assert finding is None, f"input {number}: {finding}"
        outcomes.add(outcome)
    assert "refused" in outcomes


@pytest.mark.parametrize(
    "case", [case for case in KEPT if case.target in ("nifti", "dicom", "itk")], ids=lambda case: case.name
)
def test_what_was_found_once_stays_fixed(case: Kept, tmp_path: Path) -> None:
    finding, outcome = visit(case.target, case.make(), tmp_path)
    assert finding is None
    if case.kind == "foreign-read":  # memory as it was found shows only where it is filled on purpose
        assert outcome == "refused"
