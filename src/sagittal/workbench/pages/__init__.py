"""The pages where a reader works: HTML that needs no script, and the built front end that adds the viewer."""

from sagittal.workbench.pages.routes import router

__all__ = ["router"]
