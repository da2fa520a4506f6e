"""svc: an SQS consumer service that can be stopped safely.

What a processor's author imports lives here: `Message`, `processor`, `Retry`, `Reject`, `Batch`, `Item`, `Transaction`;
`Handler`, for what drains with the service; and `Settings` for those who run it from Python. Everything else is one module away
and named after its subject. Importing the package itself costs nothing: the names are found on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svc.maintenance.handler import Handler
    from svc.processors import Batch, Item, Message, Reject, Retry, Transaction, processor
    from svc.settings import Settings

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Handler",
    "Item",
    "Message",
    "Reject",
    "Retry",
    "Settings",
    "Transaction",
    "__version__",
    "processor",
]

_HOMES = {
    "Batch": "svc.processors",
    "Handler": "svc.maintenance.handler",
    "Item": "svc.processors",
    "Message": "svc.processors",
    "Reject": "svc.processors",
    "Retry": "svc.processors",
    "Settings": "svc.settings",
    "Transaction": "svc.processors",
    "processor": "svc.processors",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'svc' has no attribute {name!r}")
