"""Codes and gains of new tokens, computed by the extension in one pass and written as they lie in a page.

It does what :meth:`~sagittal.language.codec.Codec.encode` does in plain torch for a static coding, after the
states have become components. Sums over components are taken in another order: where that moves a number
across the border between two levels, the neighbouring level is taken, or a neighbouring gain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language import extension
from sagittal.language.plan import Coding
from sagittal.language.quantise import Levels

__all__ = ["Writer", "writes"]


def writes(coding: Coding, components: Tensor) -> bool:
    """Tell whether the extension is to quantise these components.

    Raises:
        InputError: The environment variable ``SAGITTAL_KERNEL`` names a kernel that does not run here.
    """
    return (
        coding.scale == "static"
        and not coding.outliers
        and components.device.type == "cpu"
        and components.dtype == torch.float32
        and extension.chosen() in extension.natives()
    )


class Writer:
    """The tables of a static coding, as the extension reads them.

    Args:
        bits: Of each component, uint8, ``(H, C)``.
        levels: For each width in use, rising levels, float32.
        spread: Of each component, float32, ``(H, C)``.
        gains: What each held gain stands for, float32, ``(256,)``; None for a coding without gains.
    """

    def __init__(self, bits: Tensor, levels: Levels, spread: Tensor, gains: Tensor | None) -> None:
        self.heads, self.gained = len(bits), gains is not None
        self._rows = [(b, int((bits == b).sum())) for b in sorted(levels)]
        self._tables = extension.native.Quantiser(
            bits=bits.numpy(),
            levels=[levels[b].numpy() for b in sorted(levels)],
            spread=spread.numpy(),
            gains=None if gains is None else gains.numpy(),
        )

    def write(
        self, components: Tensor, kernel: str | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
        """Quantise tokens; None where a component is NaN or infinite.

        Args:
            components: float32, ``(B, H * C, T)``, T a multiple of 8; in any order in memory.
            kernel: One of :func:`~sagittal.language.extension.natives`; None for the one that is chosen.

        Returns:
            The planes and gains of a :class:`~sagittal.language.codec.Page`.

        Raises:
            InputError: The shape is another one, or the kernel does not run here.
        """
        if components.ndim != 3 or components.dtype != torch.float32:
            raise InputError(
                "components cannot be quantised",
                value=f"{tuple(components.shape)} {components.dtype}",
                expected="(B, H * C, T) float32",
            )
        batch, _, tokens = components.shape
        planes = tuple(torch.empty((batch, n, tokens // 8 * b), dtype=torch.uint8) for b, n in self._rows)
        gains = torch.empty((batch, self.heads, tokens), dtype=torch.uint8) if self.gained else None
        reach = components.untyped_storage().nbytes() - 4 * components.storage_offset()
        try:
            finite = extension.native.quantise(
                kernel=extension.chosen(kernel),
                threads=torch.get_num_threads(),
                quantiser=self._tables,
                shape=tuple(components.shape),
                components=(components.data_ptr(), reach),
                strides=components.stride(),
                planes=[(plane.data_ptr(), plane.nbytes) for plane in planes],
                gain=None if gains is None else (gains.data_ptr(), gains.nbytes),
            )
        except ValueError as error:
            raise InputError(str(error), expected="components as the coding has them") from error
        return (planes, gains) if finite else None
