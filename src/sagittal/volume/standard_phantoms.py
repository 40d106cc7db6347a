"""Phantoms with a name: Shepp-Logan, a head, regions with ramps, and the modules of a test object."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sagittal.core.errors import InputError
from sagittal.volume.phantoms import Body, Phantom

__all__ = [
    "head_phantom",
    "line_pair_module",
    "low_contrast_module",
    "random_regions",
    "shepp_logan",
    "smooth_regions",
]

# x, y, half sizes across and along, turn in degrees, half height, density in the original, in the modified.
_SHEPP_LOGAN = (
    (0.0, 0.0, 0.69, 0.92, 0.0, 0.81, 2.0, 1.0),
    (0.0, -0.0184, 0.6624, 0.874, 0.0, 0.78, -0.98, -0.8),
    (0.22, 0.0, 0.11, 0.31, -18.0, 0.22, -0.02, -0.2),
    (-0.22, 0.0, 0.16, 0.41, 18.0, 0.28, -0.02, -0.2),
    (0.0, 0.35, 0.21, 0.25, 0.0, 0.41, 0.01, 0.1),
    (0.0, 0.1, 0.046, 0.046, 0.0, 0.05, 0.01, 0.1),
    (0.0, -0.1, 0.046, 0.046, 0.0, 0.05, 0.01, 0.1),
    (-0.08, -0.605, 0.046, 0.023, 0.0, 0.05, 0.01, 0.1),
    (0.0, -0.605, 0.023, 0.023, 0.0, 0.02, 0.01, 0.1),
    (0.06, -0.605, 0.023, 0.046, 0.0, 0.02, 0.01, 0.1),
)


def shepp_logan(*, radius: float = 100.0, modified: bool = False, solid: bool = False) -> Phantom:
    """Return the Shepp-Logan head (Shepp and Logan, IEEE Trans. Nucl. Sci. 21:21, 1974).

    Args:
        radius: Length of the unit that its table is in, mm; the head is 1.84 of it long.
        modified: Toft's densities (thesis, DTU 1996), whose contrast the eye can see, instead of the
            original ones.
        solid: Ellipsoids instead of cylinders. Their third axes are those of the usual 3-D table, with every
            middle in one plane and none tilted, so that the slice through the middle is the 2-D phantom.
    """
    bodies = []
    for x, y, a, b, degrees, c, original, seen in _SHEPP_LOGAN:
        bodies.append(
            Body(
                centre=(x * radius, y * radius, 0.0),
                half_sizes=(a * radius, b * radius, c * radius if solid else math.inf),
                turn=math.radians(degrees),
                density=seen if modified else original,
            )
        )
    return Phantom(name="modified Shepp-Logan" if modified else "Shepp-Logan", bodies=tuple(bodies))


def head_phantom(*, solid: bool = False) -> Phantom:
    """Return a head with low contrast beside dense bone and air, after the FORBILD head.

    Sizes, places and densities of skull, brain, eyes, ventricle, sinus and haematoma follow Yu et al. (Phys.
    Med. Biol. 57:N237, 2012) from memory and rounded. Their ears, which planes cut, are replaced: on the
    right by an ellipse of bone with a row of air cells of 8 to 1 mm, on the left by pins of low contrast. So
    figures made with it are not figures of the FORBILD head.
    """

    def body(
        x: float, y: float, a: float, b: float, density: float, degrees: float = 0.0, name: str = ""
    ) -> Body:
        return Body(
            centre=(x, y, 0.0),
            half_sizes=(a, b, math.sqrt(a * b) if solid else math.inf),
            turn=math.radians(degrees),
            density=density,
            name=name,
        )

    bodies = [
        body(0, 0, 96, 120, 1.8, name="skull"),
        body(0, 0, 90, 114, -0.75, name="brain"),
        body(-47, 43, 20, 20, 0.01, name="left eye"),
        body(47, 43, 20, 20, 0.01, name="right eye"),
        body(0, -36, 18, 36, -0.005, name="ventricle"),
        body(0, 84, 18, 24, -1.05, name="sinus"),
        body(56, -62, 12, 4.2, 0.005, 58.0, name="haematoma"),
        body(66, -16, 20, 12, 0.75, name="petrous bone"),
    ]
    x = 50.0
    for diameter in (8.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0):
        x += diameter / 2
        bodies.append(body(x, -16, diameter / 2, diameter / 2, -1.8, name=f"air cell {diameter:g} mm"))
        x += diameter / 2 + 0.75
    for index, diameter in enumerate((10.0, 8.0, 6.0, 4.0, 3.0, 2.0)):
        place = -75.0 + 11.0 * index
        bodies.append(body(place, -16, diameter / 2, diameter / 2, 0.01, name=f"pin {diameter:g} mm"))
    return Phantom(name="head", bodies=tuple(bodies))


def smooth_regions() -> Phantom:
    """Return regions with sharp borders inside which the density is constant or rises linearly.

    Where a body has a ramp, its density is ``density + ramp . (place - centre)``: a plane, whose line
    integrals are exact. The ramps here are 0.2 to 2 HU a mm, and the borders 30 to 800 HU high.
    """
    inf = math.inf
    return Phantom(
        name="smooth regions",
        bodies=(
            Body(half_sizes=(95, 80, inf), density=1.0, ramp=(0.0004, 0.0002, 0)),
            Body(centre=(-40, 20, 0), half_sizes=(28, 40, inf), turn=0.3, density=-0.75, ramp=(0, 0.001, 0)),
            Body(centre=(42, 22, 0), half_sizes=(25, 35, inf), turn=-0.25, density=-0.72, ramp=(0.001, 0, 0)),
            Body(centre=(0, -45, 0), half_sizes=(14, 11, inf), density=0.8, ramp=(0.002, -0.001, 0)),
            Body(centre=(0, 30, 0), half_sizes=(9, 16, inf), density=0.15),
            Body(centre=(45, -30, 0), half_sizes=(18, 10, inf), turn=0.6, density=0.06, ramp=(-0.0015, 0, 0)),
            Body(
                shape="box",
                centre=(-45, -38, 0),
                half_sizes=(14, 8, inf),
                turn=0.4,
                density=0.05,
                ramp=(0.0008, 0, 0),
            ),
            Body(centre=(-38, 22, 0), half_sizes=(5, 5, inf), density=0.7, name="nodule"),
            Body(centre=(-4, -10, 0), half_sizes=(7, 7, inf), density=0.03, name="lesion"),
        ),
    )


def random_regions(seed: int, *, count: int = 14, radius: float = 90.0) -> Phantom:
    """Return a phantom like :func:`smooth_regions`, drawn at random: to tune on others than are judged.

    Args:
        seed: Which one.
        count: Bodies within the outer ellipse.
        radius: Half the outer ellipse's longer side, mm.
    """
    draw = np.random.default_rng([int(seed), 6203])
    outer = (radius, radius * draw.uniform(0.7, 1.0))
    bodies = [Body(half_sizes=(*outer, math.inf), density=1.0, ramp=(*draw.uniform(-4e-4, 4e-4, 2), 0.0))]
    for _ in range(count):
        size = radius * np.exp(draw.uniform(math.log(0.03), math.log(0.3), 2))
        way, far = draw.uniform(0, 2 * math.pi), math.sqrt(draw.uniform()) * 0.7
        bodies.append(
            Body(
                shape="ellipsoid" if draw.uniform() < 0.75 else "box",
                centre=(far * outer[0] * math.cos(way), far * outer[1] * math.sin(way), 0.0),
                half_sizes=(float(size[0]), float(size[1]), math.inf),
                turn=float(draw.uniform(0, math.pi)),
                density=float(draw.choice([-1, 1]) * math.exp(draw.uniform(math.log(0.02), math.log(0.35)))),
                ramp=(*(draw.uniform(-1e-3, 1e-3, 2) * (draw.uniform() < 0.5)), 0.0),
            )
        )
    return Phantom(name=f"random regions {seed}", bodies=tuple(bodies))


def line_pair_module(
    frequencies: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    *,
    bars: int = 4,
    density: float = 1.0,
    radius: float = 75.0,
    at: float = 50.0,
) -> Phantom:
    """Return bars at stated line pairs per mm on a circle in water, like a Catphan's resolution module.

    A gauge of ``f`` line pairs per mm has bars of 1 / (2 f) mm with gaps as wide between them, 5 mm long,
    that follow each other along the circle. Each gauge's bars are named "``f`` lp/mm ``i``". A real gauge is
    aluminium; ``density`` is what the bars add to water.

    Raises:
        InputError: Frequencies that are not positive, or gauges that do not fit on the circle.
    """
    if not frequencies or not all(f > 0 for f in frequencies) or bars < 2:
        raise InputError(
            "a gauge needs two bars and a frequency", value=(list(frequencies), bars), expected="lp/mm"
        )
    lengths = [(2 * bars - 1) / (2 * f) for f in frequencies]
    free = 2 * math.pi - sum(length / at for length in lengths)
    if free < 0.02 * len(lengths) or at + 2.5 >= radius:
        raise InputError(
            "the gauges do not fit on the circle",
            value=f"{sum(lengths):.0f} mm",
            expected=f"less than {2 * math.pi * at:.0f} mm, inside {radius:g} mm",
        )
    bodies = [Body(half_sizes=(radius, radius, math.inf), density=1.0)]
    way = 0.0
    for frequency, length in zip(frequencies, lengths, strict=True):
        middle = way + length / at / 2
        for bar in range(bars):
            along = (2 * bar - bars + 1) / (2 * frequency)
            bodies.append(
                Body(
                    shape="box",
                    centre=(
                        at * math.cos(middle) - along * math.sin(middle),
                        at * math.sin(middle) + along * math.cos(middle),
                        0.0,
                    ),
                    half_sizes=(2.5, 1 / (4 * frequency), math.inf),
                    turn=middle,
                    density=density,
                    name=f"{frequency:g} lp/mm {bar + 1}",
                )
            )
        way += length / at + free / len(lengths)
    return Phantom(name="line pairs", bodies=tuple(bodies))


def low_contrast_module(
    contrasts: Sequence[float] = (0.003, 0.005, 0.01),
    diameters: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 15.0),
    *,
    radius: float = 75.0,
    at: float = 50.0,
) -> Phantom:
    """Return discs of several sizes and contrasts on a circle in water, like a Catphan's low-contrast module.

    Args:
        contrasts: What discs add, relative to water: 0.01 is 10 HU.
        diameters: Their sizes, mm.
        radius: Radius of the water, mm.
        at: Radius of the circle on which their middles lie, mm.

    Returns:
        The phantom; a disc is named "``c`` HU ``d`` mm".

    Raises:
        InputError: Nothing to draw, sizes that are not positive, or discs that do not fit on the circle.
    """
    if not contrasts or not diameters or min(diameters) <= 0:
        raise InputError("the module needs contrasts and diameters", value=(list(contrasts), list(diameters)))
    order = sorted(diameters, reverse=True)
    free = 2 * math.pi - len(contrasts) * sum(2 * math.asin(min(d / 2 / at, 1)) for d in order)
    if free < 0.02 * len(contrasts) * len(order) or at + order[0] / 2 >= radius:
        raise InputError("the discs do not fit on the circle", value=order, expected=f"within {radius:g} mm")
    bodies = [Body(half_sizes=(radius, radius, math.inf), density=1.0)]
    way = 0.0
    for contrast in contrasts:
        for diameter in order:
            half = math.asin(diameter / 2 / at)
            way += half
            bodies.append(
                Body(
                    centre=(at * math.cos(way), at * math.sin(way), 0.0),
                    half_sizes=(diameter / 2, diameter / 2, math.inf),
                    density=contrast,
                    name=f"{1000 * contrast:g} HU {diameter:g} mm",
                )
            )
            way += half + free / (len(contrasts) * len(order))
    return Phantom(name="low contrast", bodies=tuple(bodies))
