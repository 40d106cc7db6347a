"""What does a reader do with files that somebody bent on purpose? Coverage-guided fuzzing with atheris.

    python evidence/fuzz.py --target nifti --seconds 600

Each target starts from small valid files (tests/fuzz_inputs.py), changes them with mutators that keep the
structure (tests/fuzz_mutations.py: gzip and zip are unpacked, changed and packed again) and hands them to a door
(tests/fuzz_doors.py). A finding is anything but a return or a SagittalError. A target runs in a child, because
readers in C++ can take the process with them: the child is started again until the time is over. The inputs that
were findings once are kept as tests; they are run here too, so that "fixed" is measured and not claimed.
Writes evidence/results/fuzz.json, one entry for each target; a target that is not run keeps its entry.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "tests"))
RESULT = HERE.parent / "results" / "fuzz.json"
TARGETS = ("nifti", "dicom", "itk", "archive", "plan")
INSTRUMENTED = {
    "nifti": ["sagittal.volume", "nibabel.nifti1", "nibabel.nifti2", "nibabel.analyze", "nibabel.wrapstruct"],
    "dicom": [
        "sagittal.volume",
        "pydicom.filereader",
        "pydicom.dataset",
        "pydicom.dataelem",
        "pydicom.values",
        "pydicom.valuerep",
        "pydicom.sequence",
        "pydicom.multival",
        "pydicom.hooks",
        "pydicom.encaps",
        "pydicom.pixels",
    ],
    "itk": ["sagittal.volume"],
    "plan": ["sagittal.language.plan", "json.decoder", "json.scanner"],
    "archive": ["sagittal.case", "sagittal.core", "zipfile", "json.decoder", "json.scanner"],
}
LONGEST = 8192  # bytes of one input


def child(target: str, work: Path, seconds: int, seed: int) -> None:
    """Fuzz in this process until the time is over, or until a reader takes the process with it."""
    import atheris

    scratch = work / "scratch"
    scratch.mkdir(exist_ok=True)
    with atheris.instrument_imports(include=INSTRUMENTED[target]):
        import fuzz_doors

        for path in sorted((work / "corpus").glob("seed*")):  # imports libraries, which are instrumented so
            fuzz_doors.visit(target, path.read_bytes(), scratch)
    from fuzz_mutations import mutate

    def one(data: bytes) -> None:
        finding, _ = fuzz_doors.visit(target, data, scratch)
        if finding is not None:
            keep(work, finding.kind, finding.where, finding.text, data)

    def custom(data: bytes, limit: int, seed: int) -> bytes:
        return mutate(target, data, limit, random.Random(seed), None if seed % 4 else atheris.Mutate)

    options = {
        "max_total_time": seconds,
        "max_len": LONGEST,
        "seed": seed,
        "timeout": 60,  # seconds on the clock, for what never ends; processor time is judged behind the door
        "rss_limit_mb": 4096,
        "detect_leaks": 0,
        "artifact_prefix": f"{work}/died-",
        "print_final_stats": 1,
    }
    arguments = [sys.argv[0], str(work / "corpus"), *(f"-{name}={value}" for name, value in options.items())]
    atheris.Setup(arguments, one, custom_mutator=custom)
    atheris.Fuzz()


def keep(work: Path, kind: str, where: str, text: str, data: bytes) -> None:
    """Write a finding down, and the smallest input that shows it."""
    key = f"{zlib.crc32(f'{kind} {where}'.encode()):08x}"
    with (work / "findings.jsonl").open("a") as stream:
        stream.write(json.dumps({"key": key, "kind": kind, "where": where, "text": text}) + "\n")
    path = work / f"input-{key}"
    if not path.exists() or path.stat().st_size > len(data):
        path.write_bytes(data)


def shape(data: bytes) -> str:
    """An input in words, for a table."""
    from fuzz_inputs import BUNDLE, unbundle

    if data.startswith(BUNDLE):
        parts = unbundle(data)
        return f"{len(parts)} files: " + ", ".join(shape(part) for part in parts[:4])
    names = (
        (b"\x1f\x8b", "gzip"),
        (b"PK", "zip"),
        (b"NRRD", "NRRD"),
        (b"{", "JSON"),
        (b"ObjectType", "MetaImage"),
    )
    name = next((name for start, name in names if data.startswith(start)), None)
    if name is None and data[128:132] == b"DICM":
        name = "DICOM"
    elif name is None and (data[344:347] == b"n+1" or data[4:7] == b"n+2"):
        name = "NIfTI"
    return f"{name or 'bytes'}, {len(data)} bytes"


def kept(target: str) -> list[dict[str, Any]]:
    """Run what was found earlier; say of each whether it is still a finding."""
    from fuzz_doors import visit
    from fuzz_kept import KEPT

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in KEPT:
            if case.target == target:
                finding, outcome = visit(target, case.make(), Path(folder))
                # Memory as it was found shows only where it is filled on purpose: such a file is to be refused.
                fixed = finding is None and (case.kind != "foreign-read" or outcome == "refused")
                rows.append({"name": case.name, "kind": case.kind, "fixed": fixed})
    return rows


def run(target: str, seconds: int, seed: int, work: Path) -> dict[str, Any]:
    """Fuzz one target for so many seconds, with as many children as it takes."""
    from fuzz_inputs import seeds

    (work / "corpus").mkdir(parents=True)
    for number, data in enumerate(seeds(target)):
        (work / "corpus" / f"seed{number}").write_bytes(data)
    started, children, executions, coverage, features = time.monotonic(), 0, 0, 0, 0
    log = work / "log"
    # Memory is filled where it is given out and given back, so that voxels nobody wrote are seen.
    filled = {"MALLOC_PERTURB_": "88", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    environment = {**os.environ, **(filled if target == "itk" else {})}
    while (left := round(seconds - (time.monotonic() - started))) > 1:
        arguments = [sys.executable, str(HERE), "--child", str(work), "--target", target]
        arguments += ["--seconds", str(left), "--seed", str(seed + children)]
        with log.open("wb") as stream:
            subprocess.run(arguments, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
        text = log.read_text("utf-8", "replace")
        steps = re.findall(r"^#(\d+)\t.*?cov: (\d+) ft: (\d+)", text, re.M)
        if not steps:
            raise SystemExit(f"the fuzzer did not start:\n{text[-4000:]}")
        done = re.search(r"number_of_executed_units: (\d+)", text)
        executions += int(done[1] if done else steps[-1][0])
        coverage = max(coverage, *(int(step[1]) for step in steps))
        features = max(features, *(int(step[2]) for step in steps))
        children += 1
        for path in work.glob("died-*"):
            kind = {"timeout": "hang", "oom": "memory"}.get(path.name.split("-")[1], "crash")
            keep(work, kind, target, _reason(text), path.read_bytes())
            path.unlink()
    return {
        "seconds": round(time.monotonic() - started),
        "executions": executions,
        "coverage": coverage,
        "features": features,
        "corpus": sum(1 for _ in (work / "corpus").iterdir()),
        "children": children,
        "findings": _findings(work),
        "kept": kept(target),
    }


def _reason(text: str) -> str:
    found = re.search(r"ERROR: libFuzzer: (.*)", text)
    return found[1][:200] if found else "the process died"


def _findings(work: Path) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError), (work / "findings.jsonl").open() as stream:
        for line in stream:
            row = json.loads(line)
            key = row.pop("key")
            del row["text"]  # it may hold anything, and paths
            rows.setdefault(key, {**row, "count": 0, "input": shape((work / f"input-{key}").read_bytes())})[
                "count"
            ] += 1
    return sorted(rows.values(), key=lambda row: -row["count"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the readers.")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--work", type=Path, help="keep corpus and inputs of findings here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.target, options.child, options.seconds, options.seed)
        return
    for target in TARGETS if options.target == "all" else (options.target,):
        with tempfile.TemporaryDirectory() as folder:
            row = run(target, options.seconds, options.seed, (options.work or Path(folder)) / target)
        results = json.loads(options.json.read_text()) if options.json.exists() else {}
        results = {"version": version("sagittal"), "targets": {**results.get("targets", {}), target: row}}
        options.json.parent.mkdir(exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        print(target, {name: value for name, value in row.items() if name != "kept"}, flush=True)


if __name__ == "__main__":
    main()
