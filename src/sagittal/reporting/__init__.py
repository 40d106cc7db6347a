"""Reports: sentences bound to findings, and the check on what a language model words."""

from sagittal.reporting.check import Objection, check_wording
from sagittal.reporting.draft import (
    SECTIONS,
    Draft,
    Impression,
    Section,
    Sentence,
    deterministic_impression,
    draft_sections,
)

__all__ = [
    "SECTIONS",
    "Draft",
    "Impression",
    "Objection",
    "Section",
    "Sentence",
    "check_wording",
    "deterministic_impression",
    "draft_sections",
]
