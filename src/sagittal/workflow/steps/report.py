"""Draft the report from the findings that stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from sagittal.case.record import Finding
from sagittal.core.errors import InputError
from sagittal.reporting import (
    Draft,
    Impression,
    check_wording,
    deterministic_impression,
    draft_sections,
)
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.models import DEFAULT_MODEL
from sagittal.workflow.step import Context, Result, Step

__all__ = ["DraftReport"]

_INSTRUCTION = "You sum up findings for a radiology report. You repeat only what the findings say."
_REQUEST = "Sum up these findings in one or two sentences. Use only words and numbers from the findings."
_WIDE = 0.5


@dataclass(frozen=True, kw_only=True)
class DraftReport(Step):
    """Draft a report: every sentence from a finding; a model may word the impression and nothing else.

    The model's wording is checked against the findings. When none of its tries passes, rules word the
    impression, and the report says so and shows what was refused.

    Attributes:
        model: Language model for the impression: an asset's name, a folder, or empty for rules only.
        max_new_tokens: Length at which the model's wording is cut; a cut wording is refused.
        beams: Widths of the searches tried, in order; 1 is greedy.
    """

    name: ClassVar[str] = "draft-report"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = (
        "passes it on: each sentence keeps its interval or confidence, a wide interval and every caution "
        "is printed, and a rejected or superseded finding is left out"
    )
    uses: ClassVar[tuple[str, ...]] = ("",)  # every finding: one without a section is refused, not lost
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    model: str = DEFAULT_MODEL
    max_new_tokens: int = 80
    beams: tuple[int, ...] = (1,)

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"report": Kind.JSON}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        if not context.findings:
            raise InputError("there is nothing to report", source="draft-report", expected="findings")
        context.report("drafting the report")
        findings = [_hedged(finding) for finding in context.findings]
        rules = deterministic_impression(findings)
        impression = self._worded(findings, rules, context) if self.model else rules
        draft = Draft(sections=draft_sections(findings), impression=impression)
        return Result(outputs={"report": draft.to_json()})

    def _worded(self, findings: Sequence[Finding], rules: Impression, context: Context) -> Impression:
        from sagittal.language import read

        key = [finding for finding in findings if finding.number in rules.findings]
        if not key:
            return rules
        model = context.model(self.model)
        listing = "Findings:\n" + "\n".join(f"- {finding.content.statement}" for finding in key)
        reading = read(model, listing, instruction=_INSTRUCTION)
        refused: list[dict[str, Any]] = []
        for beams in self.beams:
            answer = reading.ask(_REQUEST, max_new_tokens=self.max_new_tokens, num_beams=beams)
            objections = [asdict(objection) for objection in check_wording(answer.text, key)]
            if not answer.finished:
                objections.append({"kind": "length", "found": answer.text[-20:], "why": "it was cut"})
            if not objections:
                return Impression(
                    text=answer.text, findings=rules.findings, author=self.model, refused=tuple(refused)
                )
            refused.append({"text": answer.text, "beams": beams, "objections": objections})
        return replace(rules, refused=tuple(refused))


def _hedged(finding: Finding) -> Finding:
    """Add a caution to a measurement whose interval is wide against its value; HU have no zero for that."""
    content = finding.content
    amount = content.measurement
    if amount is None or amount.unit == "HU" or amount.high - amount.low <= _WIDE * abs(amount.value):
        return finding
    wide = "The interval is wide: read the value as an order of size."
    return replace(finding, content=replace(content, caution=f"{wide} {content.caution}".strip()))
