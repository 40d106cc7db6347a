"""A step: a method applied to a case, with what it reads, writes and does with doubt said beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sagittal.case.record import Finding, FindingDraft
from sagittal.core.assets import REGISTRY
from sagittal.core.errors import InputError
from sagittal.core.files import sha256_file, storage_errors
from sagittal.core.progress import Report, silent
from sagittal.workflow.artifacts import Kind

if TYPE_CHECKING:
    from sagittal.language.models import LanguageModel
    from sagittal.workflow.models import ModelShelf

__all__ = ["STEPS", "Context", "Result", "Step"]


@dataclass(kw_only=True)
class Context:
    """What the runner lends a step besides its inputs; it notes which models and files were used.

    Attributes:
        seed: Seed of the step's own random stream.
        findings: Findings that stand and that the step declared it uses.
        report: Takes a line that says what is being done.
    """

    seed: int
    findings: tuple[Finding, ...] = ()
    report: Report = silent
    shelf: ModelShelf | None = None
    models: dict[str, str] = field(default_factory=dict)

    def model(self, name: str) -> LanguageModel:
        """Return a language model by asset name or folder, and note its weights' sha256."""
        if self.shelf is None:
            raise InputError("this run was given no models", value=name)
        model = self.shelf.get(name, report=self.report)
        self.models[name] = model.weights_sha256
        return model

    def file(self, name: str) -> Path:
        """Return the file of an asset, or the file at a path, and note its sha256.

        Raises:
            InputError: There is no such file.
            AssetError: The asset is not on this machine and cannot be fetched.
        """
        if self.shelf is None:
            raise InputError("this run was given no assets", value=name)
        path = self.shelf.file(name, report=self.report)
        if not path.is_file():
            raise InputError(
                "there is no such file", source=name, expected=f"a file, or one of {', '.join(REGISTRY)}"
            )
        with storage_errors(path):
            self.models[name] = sha256_file(path)
        return path


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a step gives back: a value for each role it writes, and its findings in report order."""

    outputs: Mapping[str, Any]
    findings: Sequence[FindingDraft] = ()


STEPS: dict[str, type[Step]] = {}
"""Every step class that has been defined, by the name it has in a record."""


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """Base of all steps. A subclass is a frozen dataclass whose fields are its parameters (JSON values).

    Attributes:
        name: Name in the record; one class each.
        version: Raised whenever the same inputs may give another result.
        doubt: What the step does with the doubt of its inputs, for the reader of the provenance.
        uses: Prefixes of the finding codes that it reads.
        packages: Distributions whose version its result may depend on.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    doubt: ClassVar[str]
    uses: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        for attribute in ("name", "version", "doubt"):
            if not getattr(cls, attribute, ""):
                raise TypeError(f"step {cls.__name__} declares no {attribute}")
        STEPS[cls.name] = cls

    @property
    @abstractmethod
    def reads(self) -> Mapping[str, Kind]:
        """Roles it reads and their kinds."""

    @property
    @abstractmethod
    def writes(self) -> Mapping[str, Kind]:
        """Roles it writes and their kinds."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters as JSON values."""
        return asdict(self)

    @abstractmethod
    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        """Run on values of the kinds in :attr:`reads`; the same inputs and seed give the same result."""
