"""What a case looks like from outside: NIfTI, DICOM, FHIR and a page. Made from the record, never edited."""

from sagittal.workflow.export.bundle import Exported, export_case, require_libraries

__all__ = ["Exported", "export_case", "require_libraries"]
