"""How long does a segmentation network take for a whole head, beside MONAI's sliding window?

    pip install '.[language,imaging]'
    python benchmarks/segment_inference.py --json benchmarks/results/segment_inference.json

The head is the MNI152 template at 1 mm (an average of people's images, brain-masked: no person), the
network the one that the demonstration uses. It was trained at 2 mm, so the labels found here mean nothing:
timed is how long they take, and ``same_label`` is the share of the brain's voxels that have the same label
as by MONAI in float32.

``sagittal`` is :func:`~sagittal.segmentation.predict` with the precision that is fast on the processor,
``sagittal float32`` the same in float32, and ``monai float32`` the same network in
``sliding_window_inference`` as it comes (the whole grid, overlap 0.25, one window at a time) with windows
of ``--window`` cubed. Contestants take turns, each with ``--threads`` threads; of ``--rounds`` rounds the
least time is kept, which is what a machine shared with others still tells.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import fastest, machine
from monai.inferers import sliding_window_inference

from sagittal.core import assets
from sagittal.core.files import write_text
from sagittal.segmentation import model_from_bytes, predict
from sagittal.segmentation.inference import fast_precision
from sagittal.segmentation.labelled import as_seen
from sagittal.segmentation.networks import build_network
from sagittal.volume import read_nifti

NETWORK = "brain-tissue-t1"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, help="another network of one channel")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--window", type=int, default=96)
    given = parser.parse_args()
    file = given.model or assets.fetch(assets.asset(NETWORK))
    model = model_from_bytes(file.read_bytes(), file)
    image = read_nifti(assets.fetch(assets.asset("mni152-t1"))).array.astype(np.float32)[None]
    mask = image[0] > 0

    def ours(precision: str) -> Callable[[], Any]:
        return lambda: predict(model, image, mask, precision=precision, threads=given.threads)

    def monai() -> Any:
        torch.set_num_threads(given.threads)
        network = build_network(model.config, model.weights)
        seen = torch.from_numpy(as_seen(model.config, image, mask, model.scale))[None]
        with torch.inference_mode():
            found = sliding_window_inference(seen, (given.window,) * 3, 1, network, overlap=0.25)
        return np.moveaxis(torch.softmax(found, 1)[0].numpy(), 0, -1)

    contestants = {
        "sagittal": ours(fast_precision()),
        "sagittal float32": ours("float32"),
        "monai float32": monai,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    labels = {}
    for _ in range(given.rounds):
        for name, call in contestants.items():
            started = time.perf_counter()
            found = call()
            times[name].append(time.perf_counter() - started)
            labels[name] = found[mask].argmax(axis=-1)
    least = fastest(times)
    result = {
        "machine": machine(),
        "threads": given.threads,
        "rounds": given.rounds,
        "window": given.window,
        "precision": fast_precision(),
        "shape": image.shape[1:],
        "width": model.config.width,
        "seconds": least,
        "of_monai": {name: seconds / least["monai float32"] for name, seconds in least.items()},
        "same_label": {
            name: float(np.mean(found == labels["monai float32"])) for name, found in labels.items()
        },
    }
    print(json.dumps(result, indent=1))
    if given.json:
        write_text(given.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
