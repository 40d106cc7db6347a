"""Take a patient record in, and let a language model point at the lines that answer questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.core.errors import InputError
from sagittal.records import decode_record, ground
from sagittal.workflow.artifacts import Kind, SourceFiles
from sagittal.workflow.models import DEFAULT_MODEL
from sagittal.workflow.step import Context, Result, Step

__all__ = ["INSTRUCTION", "QUESTIONS", "RESERVE", "ReadRecord", "TakeRecord"]

QUESTIONS = (
    "Why was the MRI of the brain requested?",
    "Which drug is the patient allergic to?",
    "What was the score of the memory test?",
    "Which implant does the patient have?",
    "Which drug was started for blood pressure?",
)
INSTRUCTION = "You answer questions about a patient record with words from the record."
RESERVE = 256


@dataclass(frozen=True, kw_only=True)
class TakeRecord(Step):
    """Decode the record's file.

    Attributes:
        encoding: The encoding it was written in; nothing is guessed.
    """

    name: ClassVar[str] = "take-record"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts none: the text is taken as it stands"

    encoding: str = "utf-8"

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"record.files": Kind.FILES}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"record": Kind.TEXT}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        source: SourceFiles = inputs["record.files"]
        if len(source.files) != 1:
            raise InputError("a record is one file", source="record", value=f"{len(source.files)} files")
        ((name, content),) = source.files
        return Result(outputs={"record": decode_record(content, encoding=self.encoding, source=name)})


@dataclass(frozen=True, kw_only=True)
class ReadRecord(Step):
    """Read the record through a low-bit cache, ask, and keep only answers that a line of it holds.

    The finding is the record's own line; the model's words stay in the transcript. A record longer than
    the model's context is read in parts, each question is put to each part, and the surest held answer
    counts.

    Attributes:
        model: Language model: an asset's name, or a folder.
        questions: What to ask.
        key_bits: Bits of the cache's key codes.
        value_bits: Bits of the cache's value codes.
        max_new_tokens: Length at which an answer is cut.
        doubtful_below: Mean token probability under which a quote is marked doubtful.
    """

    name: ClassVar[str] = "read-record"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = (
        "starts it: the model's mean token probability goes with each quote; "
        "an answer that no line of the record holds is refused"
    )
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    model: str = DEFAULT_MODEL
    questions: tuple[str, ...] = QUESTIONS
    key_bits: int = 4
    value_bits: int = 4
    max_new_tokens: int = 40
    doubtful_below: float = 0.5

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"record": Kind.TEXT}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"reading": Kind.JSON}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        from sagittal.language import CachePlan, read, split_text

        text: str = inputs["record"]
        model = context.model(self.model)
        plan = CachePlan.uniform(self.key_bits, self.value_bits)
        parts = split_text(model, text, model.context_length - 2 * RESERVE)
        transcript: list[dict[str, Any]] = []
        cache = {"bytes": 0, "bytes_16bit": 0, "tokens": 0}
        for number, part in enumerate(parts, start=1):
            context.report(f"reading the record, part {number} of {len(parts)}")
            reading = read(model, part, plan, instruction=INSTRUCTION, reserve=RESERVE)
            held = {
                "bytes": reading.cache.nbytes,
                "bytes_16bit": reading.cache.nbytes_16bit,
                "tokens": len(reading.prefix),
            }
            cache = {
                key: cache[key] + value if key == "tokens" else max(cache[key], value)
                for key, value in held.items()
            }
            before = sum(len(earlier) for earlier in parts[: number - 1])
            first_line = text.count("\n", 0, before)
            for question in self.questions:
                context.report(f"asking: {question}")
                answer = reading.ask(question, max_new_tokens=self.max_new_tokens)
                quote = ground(question, answer.text, part)
                transcript.append(
                    {
                        "part": number,
                        "question": question,
                        "answer": answer.text,
                        "finished": answer.finished,
                        "probability": round(answer.mean_probability, 4),
                        "quote": None
                        if quote is None
                        else {
                            "line": quote.line + first_line,
                            "start": quote.start + before,
                            "text": quote.text,
                        },
                    }
                )
        return Result(
            outputs={"reading": {"transcript": transcript, "cache": cache, "parts": len(parts)}},
            findings=[*self._quotes(transcript), self._memory(cache, len(parts))],
        )

    def _quotes(self, transcript: list[dict[str, Any]]) -> list[FindingDraft]:
        findings = []
        silent = []
        for question in self.questions:
            held = [t for t in transcript if t["question"] == question and t["quote"] is not None]
            if not held:
                silent.append(question)
                continue
            best = max(held, key=lambda t: t["probability"])
            doubtful = best["probability"] < self.doubtful_below
            findings.append(
                FindingDraft(
                    code="record.quote",
                    subject=question,
                    statement=f"Record, line {best['quote']['line']}: \u201c{best['quote']['text']}\u201d",
                    confidence=best["probability"],
                    caution="The model was not decided on this answer." if doubtful else "",
                    details={"question": question, "answer": best["answer"], **best["quote"]},
                )
            )
        if silent:
            findings.append(
                FindingDraft(
                    code="record.unanswered",
                    subject="unanswered questions",
                    statement="No line of the record holds the model's answer to: " + " ".join(silent),
                    caution="This does not mean that the record says nothing about it.",
                    details={"questions": silent},
                )
            )
        return findings

    def _memory(self, cache: Mapping[str, int], parts: int) -> FindingDraft:
        share = 100 * cache["bytes"] / cache["bytes_16bit"]
        in_parts = "" if parts == 1 else f" in {parts} parts, because it is longer than the model's context"
        return FindingDraft(
            code="record.reading",
            subject="reading",
            statement=f"The record of {cache['tokens']} tokens was read{in_parts}; the model's memory of it "
            f"took {cache['bytes'] / 1e6:.1f} MB, {share:.0f} % of 16-bit memory.",
            caution="" if parts == 1 else "A statement that needs two parts together cannot be found.",
            details={"cache": dict(cache), "parts": parts},
        )
