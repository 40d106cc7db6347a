"""What the DICOM confidentiality profile does with each attribute, applied to one data set."""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sagittal.core.optional import optional_import

__all__ = ["OPTIONS", "TABLE", "Cleaner", "Pseudonyms", "identifying_words"]

TABLE = "dicomfields_2026c"
"""Table E.1-1 of PS3.15, edition 2026c, as the package dicom-anonymizer holds it."""

OPTIONS = {
    "dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "characteristics": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
}
"""Options of the profile that can be asked for: code and meaning (DCM)."""

_REMOVE, _EMPTY, _DUMMY, _UID, _INSIDE = "removed", "emptied", "replaced", "new uid", "cleaned inside"
_ACTIONS = {
    "X_TAGS": _REMOVE,
    "Z_TAGS": _EMPTY,
    "X_Z_TAGS": _EMPTY,
    "D_TAGS": _DUMMY,
    "Z_D_TAGS": _DUMMY,
    "X_D_TAGS": _DUMMY,
    "X_Z_D_TAGS": _DUMMY,
    "U_TAGS": _UID,
    "X_Z_U_STAR_TAGS": _INSIDE,
}
_CHARACTERISTICS = (
    "PatientSex PatientAge PatientSize PatientWeight EthnicGroup PatientSexNeutered SmokingStatus "
    "PregnancyStatus"
).split()
_DEVICE = (
    "StationName DeviceSerialNumber DeviceUID PlateID GeneratorID CassetteID GantryID DetectorID "
    "XRaySourceID XRayDetectorID"
).split()
_IDENTIFIERS = (
    "PatientName PatientID OtherPatientIDs OtherPatientNames PatientBirthName PatientMotherBirthName "
    "AccessionNumber ReferringPhysicianName PerformingPhysicianName OperatorsName IssuerOfPatientID"
).split()
_DATES = {"DA", "DT", "TM"}
_TEXTS = {"CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "AE"}
_KEPT_UIDS = {"CodingSchemeUID", "ContextUID", "MappingResourceUID"}
_CLASS = re.compile(r"1\.2\.840\.10008\.5\.1\.4(\.[1-9][0-9]{0,4}){1,6}")  # also one newer than pydicom


@dataclass(frozen=True)
class Pseudonyms:
    """New identifiers from old ones: the same within one secret, and unlinkable without it."""

    secret: bytes

    def uid(self, old: str) -> str:
        """Return a UID under 2.25, as PS3.5 annex B.2 makes one of a 128-bit number."""
        if not old or old in optional_import("pydicom.uid").UID_dictionary or _CLASS.fullmatch(old):
            return old
        digest = bytearray(self._digest("uid", old)[:16])
        digest[6] = digest[6] & 0x0F | 0x40  # as a random UUID has them
        digest[8] = digest[8] & 0x3F | 0x80
        return f"2.25.{int.from_bytes(digest, 'big')}"

    def patient(self, old: str) -> str:
        """Return a name for a patient who had this Patient ID."""
        return f"P{self._digest('patient', old).hex()[:12]}"

    def _digest(self, kind: str, old: str) -> bytes:
        return hmac.new(self.secret, f"{kind} {old}".encode(), hashlib.sha256).digest()


@dataclass
class Cleaner:
    """Cleans data sets by the profile and counts what it did.

    The table and the dummy values are those of dicom-anonymizer. What that package leaves out is done here:
    nested data sets at any depth, private and unknown attributes, every UID that names an instance wherever
    it stands, and identifying words that stand in an attribute that the table does not name.

    Attributes:
        pseudonyms: Where new identifiers come from.
        keep: Options of the profile, keys of :data:`OPTIONS`.
        done: How often what was done, by action and keyword.
    """

    pseudonyms: Pseudonyms
    keep: frozenset[str] = frozenset()
    done: Counter[tuple[str, str]] = field(default_factory=Counter)

    def clean(self, dataset: Any) -> None:
        """Clean a data set in place."""
        words = identifying_words(dataset)
        patient = self.pseudonyms.patient(str(dataset.get("PatientID") or ""))
        self._clean(dataset)
        dataset.PatientID = patient
        dataset.PatientName = patient
        if words:
            self._hide(dataset, re.compile("|".join(map(re.escape, words)), re.IGNORECASE), patient)

    def _clean(self, dataset: Any) -> None:
        for tag in list(dataset.keys()):
            action = self._action(dataset, tag)
            if action:
                self._apply(dataset, tag, action)

    def _action(self, dataset: Any, tag: Any) -> str:
        if tag.is_private or tag.group >> 8 in {0x50, 0x60} or tag.element == 0:
            return _REMOVE  # private; curves and overlays; group lengths
        keyword = optional_import("pydicom.datadict").keyword_for_tag(tag)
        if not keyword:
            return _REMOVE  # not of the standard, so that nothing is known of it
        vr = dataset[tag].VR
        action = _table().get((tag.group, tag.element), "")
        if self._kept(tag, keyword, vr):
            return ""
        if action:
            return action
        if vr == "PN":
            return _EMPTY
        if vr in _DATES:
            return _REMOVE
        if vr == "UI" and keyword not in _KEPT_UIDS:
            return _UID
        return _INSIDE if vr == "SQ" else ""

    def _kept(self, tag: Any, keyword: str, vr: str) -> bool:
        return (
            ("dates" in self.keep and vr in _DATES and tag.group != 0x0010)
            or ("uids" in self.keep and vr == "UI")
            or ("characteristics" in self.keep and keyword in _CHARACTERISTICS)
            or ("device" in self.keep and keyword in _DEVICE)
        )

    def _apply(self, dataset: Any, tag: Any, action: str) -> None:
        if action == _REMOVE:
            name = "private" if tag.is_private else _keyword(tag)
            del dataset[tag]
            self.done[action, name] += 1
            return
        element = dataset[tag]
        if action == _UID:
            changed = self._new_uids(element)
        elif action == _INSIDE or (action == _DUMMY and element.VR == "SQ"):
            for item in element.value or []:
                self._clean(item)
                if action == _DUMMY:
                    self._dummies(item)
            changed = False
        elif action == _DUMMY:
            changed = self._dummy(dataset, element)
        else:
            changed = not element.is_empty
            element.value = [] if element.VR == "SQ" else None
        if changed:
            self.done[action, _keyword(tag)] += 1

    def _new_uids(self, element: Any) -> bool:
        if element.is_empty:
            return False
        old = [element.value] if isinstance(element.value, str) else list(element.value)
        new = [self.pseudonyms.uid(str(one)) for one in old]
        element.value = new[0] if len(new) == 1 else new
        return new != old

    def _dummies(self, item: Any) -> None:
        """Replace whatever is left in an item of a sequence that the profile replaces."""
        for element in list(item):
            if element.VR == "SQ":
                for inner in element.value:
                    self._dummies(inner)
            elif element.VR != "UI":
                self._dummy(item, element)

    def _dummy(self, dataset: Any, element: Any) -> bool:
        if element.is_empty:
            return False
        if element.VR == "UI":
            return self._new_uids(element)
        try:
            optional_import("dicomanonymizer.simpledicomanonymizer").replace_element(element)
        except NotImplementedError:  # a kind of value that it knows no dummy for
            del dataset[element.tag]
        return True

    def _hide(self, dataset: Any, words: re.Pattern[str], patient: str) -> None:
        """Empty every text that still holds a word that the profile took out elsewhere."""
        for element in list(dataset):
            if element.VR == "SQ":
                for item in element.value:
                    self._hide(item, words, patient)
            elif element.VR in _TEXTS and not element.is_empty:
                text = str(element.value)
                if patient not in text and words.search(text):
                    element.value = None
                    self.done["emptied for a word", _keyword(element.tag)] += 1


@functools.cache
def _table() -> Mapping[tuple[int, int], str]:
    selector = optional_import("dicomanonymizer.dicomfields_selector")
    table = selector.dicom_anonymization_database_selector(TABLE)
    return {tag: action for name, action in _ACTIONS.items() for tag in table[name] if len(tag) == 2}


def _keyword(tag: Any) -> str:
    if tag.group >> 8 in {0x50, 0x60}:
        return "CurveData" if tag.group >> 8 == 0x50 else "OverlayData"
    return str(optional_import("pydicom.datadict").keyword_for_tag(tag)) or "unknown"


def identifying_words(dataset: Any) -> list[str]:
    """Return words of names and identifiers, of a name each part by itself.

    One or two letters of ASCII are left out: they would be found in almost any text.
    """
    found: set[str] = set()
    for keyword in _IDENTIFIERS:
        value = dataset.get(keyword)
        if value is None or value == "":
            continue
        many: Iterable[Any] = value if not isinstance(value, str) and hasattr(value, "append") else [value]
        for one in many:
            found.update(re.split(r"[\^=\s\\,;]+", str(one)))
    return sorted((word for word in found if len(word) > 2 or not word.isascii()), key=len, reverse=True)
