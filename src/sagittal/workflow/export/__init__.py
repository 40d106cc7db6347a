"""What a case looks like from outside: NIfTI, DICOM, FHIR and a page. Made from the record, never edited."""

from sagittal.workflow.export.bundle import Exported, export_case

__all__ = ["Exported", "export_case"]
