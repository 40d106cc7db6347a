"""Scans from files and to files: the one part of the room that reads and writes. No method imports it."""

from sagittal.reconstruction.files.ct_pd import Projections, read_ct_pd
from sagittal.reconstruction.files.scan_file import StoredScan, read_scan, write_scan

__all__ = ["Projections", "StoredScan", "read_ct_pd", "read_scan", "write_scan"]
