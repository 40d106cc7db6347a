"""The cases of a store that a person has labelled, each person once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sagittal.case.record import Artifact, Case
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.segmentation.labelled import LabelledImage
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.workflow import artifacts
from sagittal.workflow.network_input import (
    NetworkInput,
    field_of,
    image_roles,
    labels_on,
    network_input,
    wants_field,
)
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps.annotation import ANNOTATION
from sagittal.workflow.steps.registration import RegisterToAtlas

__all__ = ["LabelledCase", "field_for", "image_artifacts", "images_of", "labelled_cases", "require_distinct"]

_STANDS = "annotation.labels"


@dataclass(frozen=True, kw_only=True)
class LabelledCase:
    """A case with labels that stand.

    Attributes:
        case: The case as it was read.
        minutes: How long the labels took.
        who: Who drew them.
        labels_sha256: Of the labels.
        image_sha256: Of the voxels of the image that they were drawn on.
    """

    case: Case
    minutes: float
    who: str
    labels_sha256: str
    image_sha256: str

    @property
    def id(self) -> str:
        """Id of the case."""
        return self.case.id

    def image(
        self,
        store: CaseStore,
        channels: Sequence[str],
        spacing_mm: Sequence[float],
        field: DisplacementField | None = None,
    ) -> tuple[LabelledImage, NetworkInput]:
        """Return the case as training takes it, and its grid.

        Raises:
            InputError: A channel is missing, or lies on another grid; the message names the case.
        """
        images = images_of(store, self.case, channels)
        try:
            seen = network_input(images, channels, spacing_mm, field)
        except InputError as error:
            raise type(error)(
                error.problem,
                source=f"case {self.id}" + (f", {error.source}" if error.source else ""),
                value=error.value,
                expected=error.expected,
            ) from error
        labels = labels_on(self.labels(store), seen.geometry)
        found = LabelledImage(channels=seen.channels, labels=labels, mask=seen.mask, subject=self.id)
        return found, seen

    def labels(self, store: CaseStore) -> Volume:
        """Return the labels on the image's grid; -1 where nobody has looked."""
        artifact = self.case.latest(ANNOTATION)
        assert artifact is not None, "a labelled case has labels"
        volume: Volume = artifacts.load(store.objects, artifact)
        return volume

    def grid(self, store: CaseStore, role: str) -> Geometry:
        """Return the grid of an image, without its voxels."""
        artifact = self.case.latest(role)
        if artifact is None:
            raise InputError("a channel of the case is missing", source=f"case {self.id}", value=role)
        return Geometry.from_json(artifacts.volume_manifest(store.objects, artifact)["geometry"])


def labelled_cases(store: CaseStore, labels: Sequence[str]) -> list[LabelledCase]:
    """Return the cases whose latest labels have these names, in the order of the cases, each person once.

    A case whose finding on the labels was rejected is left out.

    Raises:
        InputError: Two cases hold the same image, or the same labels.
    """
    found = []
    for case_id in store.case_ids():
        case = store.case(case_id)
        artifact = case.latest(ANNOTATION)
        standing = case.standing(_STANDS)
        if artifact is None or not standing:
            continue
        facts = artifacts.volume_manifest(store.objects, artifact)["facts"]
        if list(facts.get("labels", ())) != list(labels):
            continue
        details = standing[-1].content.details
        image = case.latest(str(facts["role"]))
        assert image is not None, "labels were drawn on an image"
        voxels = artifacts.volume_manifest(store.objects, image)["array"]
        found.append(
            LabelledCase(
                case=case,
                minutes=float(details["minutes"]),
                who=str(details["who"]),
                labels_sha256=str(details["sha256"]),
                image_sha256=str(voxels),
            )
        )
    require_distinct(found)
    return found


def require_distinct(cases: Sequence[LabelledCase]) -> None:
    """Refuse one person under two ids, found by the contents: the other would be tested on what was learned.

    Raises:
        InputError: The message names both cases.
    """
    for what in ("image_sha256", "labels_sha256"):
        seen: dict[str, str] = {}
        for one in cases:
            other = seen.setdefault(getattr(one, what), one.id)
            if other != one.id:
                raise InputError(
                    "one labelled subject is in the store under two ids",
                    source=f"cases {other} and {one.id}",
                    value=f"the same {'image' if what.startswith('image') else 'labels'}",
                    expected="each once: reject the finding on the labels of one of them "
                    "('sagittal case reject')",
                )


def images_of(store: CaseStore, case: Case, channels: Sequence[str]) -> dict[str, Volume]:
    """Return the images of a case among the channels.

    Raises:
        InputError: The case has none of that name; the message names case and channel.
    """
    return {
        role: artifacts.load(store.objects, artifact)
        for role, artifact in image_artifacts(case, channels).items()
    }


def image_artifacts(case: Case, channels: Sequence[str]) -> dict[str, Artifact]:
    """Return where the images of a case among the channels are kept.

    Raises:
        InputError: The case has none of that name; the message names case and channel.
    """
    found: dict[str, Artifact] = {}
    for role in image_roles(channels):
        artifact = case.latest(role)
        if artifact is None or artifact.kind != artifacts.Kind.VOLUME:
            raise InputError(
                "a channel of the case is missing",
                source=f"case {case.id}",
                value=role,
                expected=f"an image for each of {', '.join(image_roles(channels))}",
            )
        found[role] = artifact
    return found


def field_for(
    runner: Runner, case: Case, channels: Sequence[str], step: RegisterToAtlas
) -> tuple[DisplacementField | None, str]:
    """Return the map from a case's image to the atlas, and the sha256 of the atlas's image.

    The registration that the case holds is used where it is to that atlas; else it is run. None where no
    channel comes from it.

    Raises:
        InputError: The registration failed its own checks; the message names the case.
    """
    if not wants_field(channels):
        return None, ""
    run = runner.run(case.id, step, once=True)
    roles = {output.role: output for output in run.outputs}
    said = artifacts.load(runner.store.objects, roles[f"{step.prefix}-registration"])
    if said["problems"]:
        raise InputError(
            "the registration to the atlas failed its own checks",
            source=f"case {case.id}",
            value="; ".join(said["problems"]),
            expected="an image that can be registered, or channels without jacobian and curl",
        )
    files = artifacts.load(runner.store.objects, roles[f"{step.prefix}-map.files"])
    return field_of(files), str(said["atlas_image"])
