"""A queue where a change of visibility by an old receipt acts on a message in flight, whoever holds it. So does moto's; AWS does
not say."""

from dataclasses import dataclass

import trio

from svc.consumer.queue import Refusal
from svc.testing import Call, SimulatedQueue
from svc.testing.history import Event


@dataclass(frozen=True, slots=True)
class TakenAway(Event):
    """The lease of a message's holder was changed by an old receipt."""

    message_id: str
    receipt: str
    holder: str
    """The receipt that holds it."""
    until: float
    began: float
    """When the client began the call."""


def let_old_receipts_act(queue: SimulatedQueue) -> None:
    server = queue._server
    hide = server.hide

    def acting(call: Call, receipt: str, timeout: int) -> Refusal | None:
        stored = server._hidden.get(server._receipts.get(receipt, ""))
        if stored is None or stored.receipt in (None, receipt):
            return hide(call, receipt, timeout)
        now = trio.current_time()
        server._hide_until(stored, now + timeout)
        server.history.append(
            TakenAway(now, call.number, stored.id, receipt, stored.receipt or "", now + timeout, began=call.at)
        )
        server._ring()
        return None

    server.hide = acting  # type: ignore[method-assign]
