"""A process of its own that adds runs to a case: ``python writer.py STORE CASE NAME COUNT [OBJECTS]``.

It is run, not imported: the tests kill it. It says each run's number once the store has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sagittal.case.record import Artifact, FindingDraft, Run
from sagittal.case.store import CaseStore


def main(location: str, case_id: str, name: str, count: str, objects: str = "") -> None:
    with CaseStore(location, objects=Path(objects) if objects else None) as store:
        for index in range(int(count)):
            array = np.full(20_000, index)
            content = store.objects.put_array(array)  # the same array in every writer
            store.objects.put_bytes(f"{name} {index}".encode() * 1000)
            run = Run(
                number=0,
                step=f"step-{name}-{index}",
                version="1",
                parameters={"index": index},
                inputs=(),
                outputs=(Artifact(role="a", kind="file", content=content),),
                findings=(),
                used=(),
                seed=index,
                doubt="none",
                models={},
                environment={},
                started="now",
                seconds=0.0,
            )
            drafts = [
                FindingDraft(code="demo", subject=f"{index}", statement=f"{name} {index} {part}")
                for part in range(3)
            ]
            print(store.add_run(case_id, run, drafts).number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
