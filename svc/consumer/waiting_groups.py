"""FIFO groups that wait for the next attempt at a message that has failed, and what that means for receives.

When the failed message is visible again, a receive that asks for ten brings it together with those behind it; if it fails again,
they were received in vain, and each receive counts towards the dead-letter queue. So a receive that may meet such a group asks
for one message: the group is locked from then on, until that message has left the queue or is visible again.

Nothing here waits, reads a clock or knows the queue.
"""

import math

SWEEP = 1000
"""Groups beyond which those that nobody waits for any more are looked for."""


class WaitingGroups:
    def __init__(self, patience: float) -> None:
        """`patience`: seconds after which a message that has not come back is taken for one that another instance has."""
        self._patience = patience
        self._groups: dict[str, tuple[float, float]] = {}
        """Group → when its failed message is visible again, and from when on it is not waited for."""
        self._failed_at: dict[str, float] = {}

    def failed(self, group: str, visible_at: float, now: float) -> None:
        """A message of the group has failed, and is visible again then."""
        if len(self._groups) >= SWEEP:
            self._groups = {name: held for name, held in self._groups.items() if held[1] > now}
            self._failed_at = {name: self._failed_at[name] for name in self._groups}
        self._groups[group] = (visible_at, visible_at + self._patience)
        self._failed_at[group] = now

    def landed(self, group: str) -> None:
        """A message of the group has come."""
        if group in self._groups:
            self._groups[group] = (self._groups[group][0], math.inf)

    def given_back(self, group: str, now: float) -> None:
        """A message of the group has gone without having been finished, and without having failed."""
        if group in self._groups and self._groups[group][1] == math.inf:
            self._groups[group] = (self._groups[group][0], now + self._patience)

    def finished(self, group: str, landed_at: float) -> None:
        """A message of the group, which landed then, has left the queue. One that landed before the failure stood before the
        failed message, in a batch with it, and was only confirmed later: the group waits on."""
        if landed_at > self._failed_at.get(group, math.inf):
            del self._groups[group], self._failed_at[group]

    def slept(self, seconds: float) -> None:
        """The clock that all these times are of has stood still for so long, and the queue's has not."""
        self._groups = {
            name: (visible_at - seconds, over - seconds) for name, (visible_at, over) in self._groups.items()
        }

    def visible_at(self, group: str) -> float | None:
        """When the failed message of this group is visible again; None when the group does not wait."""
        return self._groups[group][0] if group in self._groups else None

    def meets(self, now: float, until: float) -> bool:
        """Whether a receive from now until then may meet a group that waits."""
        return any(visible_at <= until and over > now for visible_at, over in self._groups.values())
