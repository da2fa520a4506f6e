"""svc: an SQS consumer service that can be stopped safely.

What a processor's author imports lives here: `Message`, `Retry`, `Reject`; and `Settings` for those who run the service from
Python. Everything else is one module away and named after its subject.
"""

import os
from typing import TYPE_CHECKING

# etcd3's generated code needs protobuf's pure-Python implementation (protobuf >= 4 refuses it otherwise). The choice counts
# only before the first import of google.protobuf by anybody, hence here.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

from svc.processors import Message, Reject, Retry

if TYPE_CHECKING:
    from svc.settings import Settings

__version__ = "0.1.0"
__all__ = ["Message", "Reject", "Retry", "Settings", "__version__"]


def __getattr__(name: str) -> object:
    """`svc.Settings` is found on first use: its validation library takes longer to import than everything else here."""
    if name == "Settings":
        from svc.settings import Settings

        return Settings
    raise AttributeError(f"module 'svc' has no attribute {name!r}")
