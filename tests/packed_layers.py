"""Keys and values of a layer in every layout, and how far a kernel is from the reference on them."""

from __future__ import annotations

import numpy as np
import torch

from sagittal.language.attend import attend, reference
from sagittal.language.codec import Codec
from sagittal.language.pages import PagedStates
from sagittal.language.plan import Coding
from sagittal.language.rope import Rope

LAYOUTS = (
    "channel", "token", "before rope", "static", "basis", "shared basis", "after rope", "fitted", "hadamard",
    "outliers", "exact",
)  # fmt: skip


def orthonormal(rng, heads, width, columns):
    basis = np.linalg.qr(rng.normal(size=(heads, width, width)))[0][:, :, :columns]
    scale = (np.abs(basis).max(1) / 127).astype(np.float16)
    return np.round(basis / scale[:, None]).clip(-127, 127).astype(np.int8), scale


def coding(layout, heads, width, rng, *, keys=True, bits=None):
    """One coding of each kind that a kernel reads, or leaves to the reference."""
    if layout == "exact":
        return Coding(bits=16)
    if layout in ("channel", "outliers", "before rope"):
        share = 0.01 if layout == "outliers" else 0.0
        mixed = rng.integers(1, 9, (heads, width)).astype(np.uint8) if bits is None else bits
        return Coding(
            bits=mixed, scale="channel", outliers=share, before_rope=keys and layout == "before rope"
        )
    if layout in ("token", "hadamard"):
        group = next(g for g in (64, 48, 32, 16, 8) if heads * width % g == 0)
        rotation = "hadamard" if layout == "hadamard" else "none"
        return Coding(bits=bits or 3, scale="token", group=group, rotation=rotation)
    based = layout in ("basis", "shared basis", "after rope")
    columns = width * 3 // 4 if based else width
    mixed = rng.integers(0, 9 if layout == "fitted" else 6, (heads, columns)).astype(np.uint8)
    mixed[:, 0] = 4
    mixed = mixed if bits is None else np.full_like(mixed, bits)
    rest = {}
    if based:
        basis, scale = orthonormal(rng, 1 if layout == "shared basis" else heads, width, columns)
        rest = {"rotation": "basis", "basis": basis, "basis_scale": scale}
    fitted = {b: tuple(np.linspace(-2, 2.5, 1 << b)) for b in range(1, 9)}
    return Coding(
        bits=mixed,
        scale="static",
        levels=fitted if layout == "fitted" else "gaussian",
        gain=layout != "fitted",
        spread=np.exp(0.7 * rng.normal(size=(heads, columns))).astype(np.float32),
        before_rope=keys and layout != "after rope",
        mean=rng.normal(size=(heads, width)).astype(np.float32),
        weight=np.exp(0.3 * rng.normal(size=(heads, width))).astype(np.float32),
        **rest,
    )


def layer(
    layouts, *, batch=1, heads=2, width=32, tokens=300, page=64, seed=0, bits=None, pads=None, kept=True,
    dtype=torch.float32, turned=None, crop=0, grow=0,
):  # fmt: skip
    """Keys and values of a layer, as a cache would hold them."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    turned = width // 2 if turned is None else turned
    rope = Rope(1e4 ** -(torch.arange(turned) / turned), scaling=1.2)
    pads = torch.zeros(1, dtype=torch.int64) if pads is None else pads
    found = []
    for layout, keys in zip(layouts, (True, False), strict=True):
        how = coding(layout, heads, width, rng, keys=keys, bits=bits)
        codec = None if how.exact else Codec(how, heads=heads, width=width, page=page, rope=rope)
        states = torch.randn(batch, heads, tokens + grow, width, generator=generator).to(dtype)
        held = PagedStates.empty(codec, page, states).append(states[:, :, :tokens])
        for more in (grow, 0):
            here = torch.arange(held.quantised, held.quantised + held.ready)
            chosen = ((here < 4) | (here % 97 == 5)).expand(batch, -1).clone()
            chosen[-1] &= here % 2 == 0
            held = held.settle(pads, chosen if kept and held.ready else None)
            if crop and more:
                held = held.crop(crop)
            if more:
                held = held.append(states[:, :, tokens:])
        found.append(held)
    return tuple(found)


def error(query, keys, values, kernel, device="cpu", **rest):
    """How far a kernel is from the reference in float64: norm of the difference by norm of the result."""
    scaling = query.shape[-1] ** -0.5
    exact = reference(query.double(), keys, values, scaling=scaling, dtype=torch.float64, **rest)

    def there(thing):
        return thing.to(device) if isinstance(thing, torch.Tensor) else thing

    if device != "cpu":  # else the very pages that were given: a kernel may remember where they lie
        keys, values = keys.map(there), values.map(there)
    found = attend(
        there(query),
        keys,
        values,
        scaling=scaling,
        kernel=kernel,
        **{name: there(thing) for name, thing in rest.items()},
    )
    assert found.dtype == query.dtype
    assert found.shape == exact.shape
    return float((found.cpu().double() - exact).norm() / exact.norm())
