"""A registration network as bytes: safetensors, with a header in JSON of everything that is not a weight.

Nothing is unpickled. Two stages are one file. The header holds the sha256 of the weights.
"""

from __future__ import annotations

from sagittal.core.errors import FormatError, SagittalError
from sagittal.core.weights_file import packed_weights, unpacked_weights
from sagittal.registration.network import RegistrationNetwork
from sagittal.volume import Geometry

__all__ = ["network_bytes", "network_from_bytes"]

_KIND = "registration-network"
_FORMAT = 1  # of the header, the order of the layers and the images' normalisation
_PLAIN = ("width", "measure", "regularity", "steps", "seed", "extra")
_MAKER = "sagittal registration train"
_WANTED = f"a network that {_MAKER} has written"


def network_bytes(network: RegistrationNetwork) -> bytes:
    """Return a network as the content of a file."""
    stages = [network] if network.first is None else [network.first, network]
    arrays = {f"{n}.{name}": a for n, stage in enumerate(stages) for name, a in stage.weights.items()}
    header = {
        "normalisation": "percentiles 0.5 and 99.5 to 0 and 1",
        "grid": network.grid.to_json(),
        "stages": [
            {**{name: getattr(stage, name) for name in _PLAIN}, "scale": list(stage.scale)}
            for stage in stages
        ],
    }
    return packed_weights(_KIND, _FORMAT, arrays, header)


def network_from_bytes(content: bytes, source: object = None) -> RegistrationNetwork:
    """Return the network that a file holds.

    Args:
        content: The whole file.
        source: What to call it in an error.

    Raises:
        FormatError: Another kind of file, one that was cut short or changed, or one of a later version.
    """
    arrays, header = unpacked_weights(
        _KIND, _FORMAT, content, source, what="registration network", made_by=_MAKER
    )
    try:
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
    except (LookupError, TypeError, ValueError) as error:
        raise FormatError("the network is damaged", source=source, expected=_WANTED) from error
    if network is None:
        raise FormatError("the file holds no network", source=source, expected=_WANTED)
    return network
