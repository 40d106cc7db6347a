"""A registration network as bytes: safetensors, with a header in JSON of everything that is not a weight.

Nothing is unpickled. Two stages are one file. The header holds the sha256 of the weights.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sagittal import __version__
from sagittal.core.errors import FormatError, SagittalError
from sagittal.core.optional import optional_import
from sagittal.core.provenance import hash_array, hash_json
from sagittal.registration.network import RegistrationNetwork
from sagittal.volume import Geometry

__all__ = ["network_bytes", "network_from_bytes"]

_KEY = "sagittal.registration-network"
_FORMAT = 1  # of the header, the order of the layers and the images' normalisation
_PLAIN = ("width", "measure", "regularity", "steps", "seed", "extra")
_WANTED = "a network that sagittal registration train has written"


def network_bytes(network: RegistrationNetwork) -> bytes:
    """Return a network as the content of a file."""
    stages = [network] if network.first is None else [network.first, network]
    arrays = {
        f"{n}.{name}": np.array(a) for n, stage in enumerate(stages) for name, a in stage.weights.items()
    }
    header = {
        "format": _FORMAT,
        "version": __version__,
        "normalisation": "percentiles 0.5 and 99.5 to 0 and 1",
        "grid": network.grid.to_json(),
        "stages": [
            {**{name: getattr(stage, name) for name in _PLAIN}, "scale": list(stage.scale)}
            for stage in stages
        ],
        "sha256": _digest(arrays),
    }
    save = optional_import("safetensors.numpy", "language").save
    found: bytes = save(arrays, metadata={_KEY: json.dumps(header)})
    return found


def network_from_bytes(content: bytes, source: object = None) -> RegistrationNetwork:
    """Return the network that a file holds.

    Args:
        content: The whole file.
        source: What to call it in an error.

    Raises:
        FormatError: Another kind of file, one that was cut short or changed, or one of a later version.
    """
    load = optional_import("safetensors.numpy", "language").load
    try:
        length = int.from_bytes(content[:8], "little")
        header: Any = json.loads(content[8 : 8 + length])["__metadata__"][_KEY]
        header = json.loads(header)
    except (ValueError, LookupError, TypeError) as error:
        raise FormatError("this is no registration network", source=source, expected=_WANTED) from error
    if header.get("format") != _FORMAT:
        raise FormatError(
            "the network is of another format",
            source=source,
            value=f"{header.get('format')}, from version {header.get('version')}",
            expected=f"{_FORMAT}, as version {__version__} writes it",
        )
    try:
        arrays = load(content)
        if _digest(arrays) != header["sha256"]:
            raise FormatError("the weights are damaged", source=source, expected=_WANTED)
        grid, network = Geometry.from_json(header["grid"]), None
        for number, stage in enumerate(header["stages"]):
            own = {
                name: a
                for key, a in arrays.items()
                for n, _, name in [key.partition(".")]
                if n == str(number)
            }
            growth, turning = stage["scale"]
            network = RegistrationNetwork(
                weights=own,
                grid=grid,
                scale=(float(growth), float(turning)),
                first=network,
                **{name: stage[name] for name in _PLAIN},
            )
    except SagittalError as error:
        raise FormatError(error.problem, source=source, value=error.value, expected=_WANTED) from error
    except Exception as error:  # safetensors has an error class of its own
        raise FormatError("the network is damaged", source=source, expected=_WANTED) from error
    if network is None:
        raise FormatError("the file holds no network", source=source, expected=_WANTED)
    return network


def _digest(arrays: dict[str, Any]) -> str:
    return hash_json({name: hash_array(array) for name, array in arrays.items()})
