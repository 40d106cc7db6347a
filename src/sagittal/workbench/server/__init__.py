"""The case server: an HTTP API over one store, and the pages for readers."""

from sagittal.workbench.server.app import create_app
from sagittal.workbench.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
