"""Patient records as text: decoding, quoting, and a simulated one to test reading on."""

from sagittal.records.grounding import Quote, content_words, ground
from sagittal.records.simulate import Fact, SimulatedRecord, simulate_record
from sagittal.records.text import decode_record

__all__ = [
    "Fact",
    "Quote",
    "SimulatedRecord",
    "content_words",
    "decode_record",
    "ground",
    "simulate_record",
]
