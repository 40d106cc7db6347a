"""sagittal: medical-imaging AI that runs, whole, on the machine you have.

Importing this package imports nothing else: each room loads what it needs when it is asked for.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
