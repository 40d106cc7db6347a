from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language.rotation import fwht, heads_together, rotate_heads


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _sylvester(width: int) -> Tensor:
    """Return the orthonormal Hadamard matrix whose entry (i, j) has the sign of the parity of i & j."""
    signs = [[1.0 - 2 * ((i & j).bit_count() % 2) for j in range(width)] for i in range(width)]
    return torch.tensor(signs, dtype=torch.float64) / width**0.5


@pytest.mark.parametrize("width", [1, 2, 8, 64, 256])
def test_transform_is_the_matrix_and_its_own_inverse(width: int) -> None:
    states = _draw(3, 2, width)
    turned = fwht(states)
    assert torch.allclose(turned, states @ _sylvester(width), atol=1e-12)
    assert torch.allclose(fwht(turned), states, atol=1e-12)
    assert torch.allclose(turned.norm(dim=-1), states.norm(dim=-1))


@pytest.mark.parametrize("width", [0, 3, 48])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(InputError, match="power of two"):
        fwht(torch.zeros(2, width))


@pytest.mark.parametrize(
    ("heads", "width", "block"), [(1, 16, 16), (2, 16, 32), (4, 8, 32), (3, 16, 16), (1, 24, 8), (3, 10, 2)]
)
def test_groups_of_heads_turn_in_the_largest_blocks(heads: int, width: int, block: int) -> None:
    states = _draw(5, 2 * heads * width)
    turned = rotate_heads(states, heads, width)
    whole = torch.block_diag(*[_sylvester(block)] * (2 * heads * width // block))
    assert torch.allclose(turned, states @ whole, atol=1e-12)
    assert torch.allclose(rotate_heads(turned, heads, width), states, atol=1e-12)


def test_a_spike_is_spread_over_its_group_alone() -> None:
    states = torch.zeros(4 * 16)
    states[37] = 8.0
    turned = rotate_heads(states, 2, 16)
    assert torch.equal(turned[:32], torch.zeros(32))
    assert torch.allclose(turned[32:].abs(), torch.full((32,), 8 / 32**0.5))


@pytest.mark.parametrize(
    ("heads", "together"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (7, 1), (8, 4), (9, 3)]
)
def test_heads_together_divide_the_heads(heads: int, together: int) -> None:
    assert heads_together(heads) == together
