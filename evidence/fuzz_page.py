"""Make the section on bent files from the JSON of evidence/fuzz.py, for docs/reliability.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pages import table

__all__ = ["RESULT", "section"]

RESULT = Path(__file__).parent / "results" / "fuzz.json"
NAMES = {
    "nifti": "NIfTI, with sidecars",
    "dicom": "DICOM, files and series",
    "itk": "NRRD and MetaImage",
    "archive": "case archives",
    "plan": "plans of the low-bit cache",
}
KINDS = {
    "exception": "an error that is not the project's own",
    "crash": "the process ended",
    "hang": "more than five seconds",
    "memory": "memory without a bound",
    "foreign-read": "another file's content, or memory as it was found, returned as voxels",
    "identity": "a name from the file in a message, a warning or a log line",
    "message": "a message of many pages",
    "warnings": "more warnings than one can read",
    "write": "a file written where none was asked for",
}


def section(result: dict[str, Any]) -> str:
    """Return the section as Markdown."""
    targets = {name: result["targets"][name] for name in NAMES if name in result["targets"]}
    runs = [
        [
            NAMES[name],
            f"{row['seconds'] / 60:.0f}",
            f"{row['executions']:,}".replace(",", " "),
            f"{row['coverage']:,}".replace(",", " "),
            sum(not kept["fixed"] for kept in row["kept"]) + len(row["findings"]),
        ]
        for name, row in targets.items()
    ]
    kept = [(name, case) for name, row in targets.items() for case in row["kept"]]
    kinds = [kind for kind in KINDS if any(case["kind"] == kind for _, case in kept)]
    found = [
        [KINDS[kind], *(sum(case["kind"] == kind for at, case in kept if at == name) for name in targets)]
        for kind in kinds
    ]
    fixed = sum(case["fixed"] for _, case in kept)
    return f"""## Files that were bent on purpose

`evidence/fuzz.py` changes small valid files and hands them to the readers, guided by the code that each change
reaches (atheris). What is packed is unpacked, changed and packed again. A reader may return or raise one of the
project's own errors; anything else counts as found: another error, the end of the process, five seconds, 256 MiB more
memory, a file written or another one read, memory that nobody wrote, a patient's name in a message.

The last run, of version {result["version"]}:

{table(["files", "minutes", "inputs", "branches reached", "still found"], runs)}

Found before, and kept as tests ({fixed} of {len(kept)} do no longer happen):

{table(["what happened", *(NAMES[name] for name in targets)], found)}

Some of these were looked for by hand once the first of their kind was there. A run of minutes on two processors shows
what is easy to reach; it does not show that nothing is left. Decoders in C (JPEG 2000, JPEG-LS) and ITK's own code are
not instrumented: there the changes are guided only by our side of the call.
"""
