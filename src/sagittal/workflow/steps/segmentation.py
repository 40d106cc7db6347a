"""Segment a case's image with a network that was trained before, and say how much of each label there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sagittal.case.record import FindingDraft
from sagittal.core.errors import InputError, ModelError
from sagittal.core.native import thread_count
from sagittal.segmentation import class_volumes, doubtful_share, predict
from sagittal.volume import Volume
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.network_input import field_of, image_roles, network_input, on_image, wants_field
from sagittal.workflow.pinned_network import pinned_network
from sagittal.workflow.step import Context, Result, Step

if TYPE_CHECKING:
    from sagittal.segmentation import SegmentationModel, VolumeScaling

__all__ = ["SegmentByNetwork"]

_NAMES = {"csf": "cerebrospinal fluid", "gm": "grey matter", "wm": "white matter"}
_LEARNED = (
    "By a network that was trained on {subjects}: what it has not seen, it may call anything, and its "
    "interval does not know of that."
)
_EARNED = "The interval is what {count} labelled subjects differed by that trained nothing."
_ALONE = (
    "The interval comes from the probabilities alone and takes all voxels to err together: too few labelled "
    "subjects were held out to know how far volumes are off."
)


@dataclass(frozen=True, kw_only=True)
class SegmentByNetwork(Step):
    """Segment the case's images with a trained network.

    Attributes:
        model: The model's file.
        sha256: What the file must contain.
        channels: The network's channels, in order.
        prefix: What the roles of the registration to the atlas begin with, where a channel comes from it.
        beside: Segmentation of the case with the same classes to compare with; empty for none.
        precision: "float32", or "bfloat16" where the processor has it.
        level: Coverage of the volumes' intervals.
        doubtful_below: Probability under which a voxel's label counts as doubtful.
    """

    name: ClassVar[str] = "segment-by-network"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = (
        "starts it: calibrated probabilities of each label in each voxel, volumes with an interval; where "
        "the image or the registration is unsure, that is not in them"
    )
    packages: ClassVar[tuple[str, ...]] = ("torch", "scipy")

    model: str
    sha256: str
    channels: tuple[str, ...]
    prefix: str = "atlas"
    beside: str = ""
    precision: str = "float32"
    level: float = 0.95
    doubtful_below: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))

    @property
    def reads(self) -> Mapping[str, Kind]:
        found = dict.fromkeys(image_roles(self.channels), Kind.VOLUME)
        if wants_field(self.channels):
            found |= {f"{self.prefix}-map.files": Kind.FILES, f"{self.prefix}-registration": Kind.JSON}
        if self.beside:
            found[self.beside] = Kind.VOLUME
        return found

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"segmentation": Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        model = pinned_network(context, self.model, self.sha256, self.channels)
        registered = inputs.get(f"{self.prefix}-registration")
        if registered is not None:
            _require_atlas(model, registered, self.model)
        field = field_of(inputs[f"{self.prefix}-map.files"]) if registered is not None else None
        images = {role: inputs[role] for role in image_roles(self.channels)}
        first: Volume = images[self.channels[0]]
        seen = network_input(images, self.channels, model.config.spacing_mm, field)
        context.report("segmenting with the network")
        shares = predict(model, seen.channels, seen.mask, precision=self.precision, threads=thread_count())
        found = on_image(shares, seen, first, model.config.labels)
        learned = f"{len(model.subjects)} {model.facts.get('data', '')} subjects".replace("  ", " ")
        facts: dict[str, Any] = {
            "model": self.sha256,
            "subjects": learned,
            "mirrored": mirrored(model, first),
        }
        facts |= {"simulated": True} if first.facts.get("simulated") else {}
        found = found.replace(facts=facts)
        beside = inputs[self.beside] if self.beside else None
        return Result(outputs={"segmentation": found}, findings=self.findings(found, beside, model.volumes))

    def findings(
        self, found: Volume, beside: Volume | None = None, scaling: VolumeScaling | None = None
    ) -> list[FindingDraft]:
        """Measure a segmentation; also asked of one that a person corrected, to which no scaling belongs."""
        assert found.probabilities is not None, "a network gives probabilities"
        size = found.geometry.voxel_volume_ml
        learned = _LEARNED.format(subjects=found.facts.get("subjects", "some subjects"))
        rests = _ALONE if scaling is None else _EARNED.format(count=scaling.subjects)
        volumes = class_volumes(found.probabilities, voxel_ml=size, level=self.level, scaling=scaling)
        said = []
        for name, amount in zip(found.classes, volumes, strict=True):
            title = _NAMES.get(name, name)
            said.append(
                FindingDraft(
                    code="segmentation.volume",
                    subject=f"{title}, by the network",
                    statement=f"{title[0].upper()}{title[1:]}, by the network: {amount.amount} "
                    f"({amount.interval}).",
                    measurement=amount,
                    caution=f"{rests} {learned}",
                    details={"class": name},
                )
            )
        share = doubtful_share(found.probabilities, found.array > 0, below=self.doubtful_below)
        said.append(
            FindingDraft(
                code="segmentation.doubt",
                subject="voxels that the network doubts",
                statement=f"{100 * share:.0f} % of the voxels that the network labels have no label with a "
                f"probability of {self.doubtful_below:g} or more.",
                caution=str(found.facts.get("mirrored", "")),
                details={"share": round(share, 6)},
            )
        )
        if beside is not None:
            said.append(self._disagreement(found, beside))
        return said

    def _disagreement(self, found: Volume, beside: Volume) -> FindingDraft:
        if beside.classes != found.classes or beside.shape != found.shape:
            raise InputError(
                "the other segmentation has other classes or another grid",
                source=self.beside,
                value=", ".join(beside.classes),
                expected=", ".join(found.classes),
            )
        either = (found.array > 0) | (beside.array > 0)
        share = float(np.mean((found.array != beside.array)[either]))
        return FindingDraft(
            code="segmentation.disagreement",
            subject=f"voxels that the network and {self.beside} call differently",
            statement=f"The network and the segmentation {self.beside} call {100 * share:.0f} % of the "
            "brain's voxels differently.",
            caution="Which of the two is right there is not known.",
            details={"share": round(share, 6), "beside": self.beside},
        )


def mirrored(model: SegmentationModel, image: Volume) -> str:
    """Return what to warn of where left and right may be exchanged; empty where nothing speaks for it.

    The voxels themselves cannot tell: a mirrored head looks like a head. Nor can a registration to the
    MNI152 template: the one that is used here was made symmetric, each voxel is that of the other side, and
    what fits it fits it as well when it is mirrored. What can be seen is a file without a place in space, and
    axes of another handedness than those of every image of training.
    """
    if image.facts.get("unplaced"):
        return "The image's file does not say where left is: left and right may be exchanged."
    known = [str(codes) for codes in model.facts.get("orientations", ())]
    codes = "".join(image.geometry.axis_codes)
    if known and all(_handedness(codes) != _handedness(other) for other in known):
        return (
            f"The image's axes are mirrored against those of every image of training ({codes} here, "
            f"{', '.join(known)} there): if its file is wrong, left and right are exchanged."
        )
    return ""


def _handedness(codes: str) -> int:
    """Return 1 for axes that turn like right, anterior, superior, and -1 for their mirror image."""
    axes = ["RL", "AP", "SI"]
    order = [next(n for n, pair in enumerate(axes) if code in pair) for code in codes]
    swaps = sum(order[a] > order[b] for a in range(3) for b in range(a + 1, 3))
    turned = sum(axes[n].index(code) for n, code in zip(order, codes, strict=True))
    return -1 if (swaps + turned) % 2 else 1


def _require_atlas(model: SegmentationModel, registered: Mapping[str, Any], source: str) -> None:
    if registered["problems"]:
        raise InputError(
            "the registration to the atlas failed its own checks",
            source="the case's registration",
            value="; ".join(registered["problems"]),
            expected="an image that can be registered, or a model without jacobian and curl",
        )
    known = list(model.facts.get("atlas_image", ()))
    if known and registered["atlas_image"] not in known:
        raise ModelError(
            "the model was trained with another atlas",
            source=source,
            value=f"image sha256 {registered['atlas_image'][:12]}…",
            expected=f"image sha256 {', '.join(digest[:12] + '…' for digest in known)}",
        )
