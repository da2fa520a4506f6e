"""The fleet, as it is shown: a table, a line per change, JSON: text out of snapshots. And the screen that is drawn over."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from typing import TextIO

from svc.maintenance.fleet import Answer, Fleet, Request, Result, Standing, answer
from svc.maintenance.registration import Entry
from svc.maintenance.switch_value import parse_switch

COLUMNS = ("instance", "phase", "in flight", "revision", "version", "note")


def row(one: Entry) -> dict[str, object]:
    """An instance, ready for JSON."""
    if one.held is None:
        return {"id": one.id, "phase": "unreadable"}
    held, said = one.held, one.held.acknowledgement
    return {
        "id": one.id,
        "phase": said.phase,
        "in_flight": said.in_flight,
        "quiet": said.quiet,
        "receives": said.receives,
        "revision": said.revision,
        "own_revision": said.own_revision,
        "keys": list(said.keys),
        "host": held.host,
        "pid": held.pid,
        "version": held.version,
        "started": held.started,
        "queue": held.queue,
        "drain": dict(said.drain) if said.drain is not None else None,
    }


def fleet(held: Fleet) -> dict[str, object]:
    """All of it, ready for JSON. `current`: whether an instance has acted on what the maintenance key says now."""
    shown: dict[str, object] = {"maintenance": None, "reason": None, "by": None, "until": None, "ignored_value": None}
    on: bool | None = None
    try:
        switch = parse_switch(held.value)
    except ValueError as error:
        shown["ignored_value"] = str(error)
    else:
        on = switch.on
        shown |= {"maintenance": on, "reason": switch.reason, "by": switch.by, "until": switch.until}
    instances = []
    for one in held.entries:
        revision = one.held.acknowledgement.revision if one.held is not None else None
        current = revision is not None and (revision == held.mod_revision or (held.mod_revision == 0 and on is False))
        instances.append({**row(one), "current": current})
    return {
        **shown,
        "expires_in": held.expires_in,
        "revision": held.mod_revision or None,
        "quiet": _all_have(Request(bool(on), held.mod_revision, quiet=True), held),
        "drained": _all_have(Request(bool(on), held.mod_revision), held),
        "only": sorted(held.own),
        "vanished": list(held.vanished),
        "instances": instances,
    }


def _all_have(request: Request, held: Fleet) -> bool:
    """Whether every member has answered this request for maintenance, and there is one."""
    there = request.on and bool(request.revision) and bool(held.entries) and not held.vanished
    return there and all(answer(request, one) is Answer.DONE for one in held.entries)


def end(standing: Standing, request: Request, *, code: int, result: str, elapsed: float) -> dict[str, object]:
    """How a wait ended, ready for JSON."""
    return {
        "event": "end",
        "result": result,
        "code": code,
        "on": request.on,
        "revision": request.revision,
        "elapsed": round(elapsed, 1),
        "waiting": list(standing.waiting),
        "expired": list(standing.expired),
        "held": list(standing.held),
        "died": list(standing.died),
        "stopped": list(standing.stopped),
        "instances": [row(one) for one in standing.live],
    }


def table(
    entries: Sequence[Entry],
    *,
    vanished: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
    limit: int | None = None,
    registered: bool = True,
) -> list[str]:
    """Lines of a table, those with a note first when not all have room. `vanished` come last, always. `registered`: in etcd,
    where one that is no more can be forgotten."""
    told = notes or {}
    shown = sorted(entries, key=lambda one: one.id)
    if limit is not None and len(shown) > limit:
        shown = sorted(shown, key=lambda one: (one.id not in told, one.id))[: max(limit, 1)]
    rows = [COLUMNS] + [_cells(one, told.get(one.id, "")) for one in shown]
    gone = "not heard of; gone for good? svc maintenance forget {}" if registered else "does not answer"
    rows += [(id, "vanished", "", "", "", gone.format(id)) for id in vanished]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    if len(shown) < len(entries):
        lines.append(f"… and {len(entries) - len(shown)} more")
    return lines


def _cells(one: Entry, note: str) -> tuple[str, ...]:
    if one.held is None:
        return one.id, "unreadable", "", "", "", note
    said = one.held.acknowledgement
    notes = [note] if note else []
    if is_landing(one):
        notes.append(_on_the_wire(said.receives))
    if "instance" in said.keys:
        notes.append("by its own key")
    revision = "" if said.revision is None else str(said.revision)
    return one.id, shown_phase(one), str(said.in_flight), revision, one.held.version, ", ".join(notes)


def is_landing(one: Entry) -> bool:
    """It drains, and is quiet: all that it waits for is receives on the wire, whose messages go back, and the queue's answers."""
    return one.held is not None and one.phase == "draining" and one.held.acknowledgement.quiet


def shown_phase(one: Entry) -> str:
    """The phase in a word, for people."""
    return "landing" if is_landing(one) else one.phase


def _on_the_wire(receives: int) -> str:
    return "1 receive on the wire" if receives == 1 else f"{receives} receives on the wire"


def notes(standing: Standing) -> dict[str, str]:
    """What is to be said beside the instances of a wait that are not done."""
    told = dict.fromkeys(standing.waiting, "not yet") | dict.fromkeys(standing.expired, "out of time")
    return told | {one.id: f"out of time, {_threads(one)}" for one in standing.live if one.id in told and _threads(one)}


def _threads(one: Entry) -> str:
    """How many threads go on there after a drain; empty: none."""
    drain = one.held.acknowledgement.drain if one.held is not None and one.phase == "expired" else None
    count = drain.get("threads") if drain is not None else None
    if not isinstance(count, int) or count < 1:
        return ""
    return "1 thread goes on" if count == 1 else f"{count} threads go on"


def progress(standing: Standing, request: Request) -> str:
    """One line: how far a wait is."""
    done = len(standing.live) - len(standing.waiting)
    what = "running" if not request.on else "quiet" if request.quiet else "in maintenance"
    return f"{done} of {len(standing.live)} {what}"


def changes(before: Standing | None, now: Standing) -> list[tuple[str, dict[str, object]]]:
    """What has changed between two snapshots of a wait: a line to read, and the same ready for JSON."""
    old = {one.id: one for one in before.live} if before is not None else {}
    found: list[tuple[str, dict[str, object]]] = []
    waiting, waited = set(now.waiting), set(before.waiting) if before is not None else set()
    for one in now.live:
        last = old.get(one.id)
        if (
            last is not None
            and (shown_phase(last), last.in_flight) == (shown_phase(one), one.in_flight)
            and ((one.id in waiting) == (one.id in waited))
        ):
            continue
        flight = f", {one.in_flight} in flight" if one.in_flight else ""
        flight += f", {_threads(one)}" if _threads(one) else ""
        if one.held is not None and is_landing(one):
            flight += f", {_on_the_wire(one.held.acknowledgement.receives)}"
        yet = " (not an answer yet)" if one.id in waiting and one.phase in ("drained", "expired") else ""
        new = "new, " if last is None and before is not None else ""
        event = {"event": "instance", "done": one.id not in waiting, **row(one)}
        found.append((f"{one.id}: {new}{shown_phase(one)}{flight}{yet}", event))
    for event_name, text, ids in (
        ("died", "has vanished without a word (killed, frozen, or cut off)", now.died),
        ("stopped", "has stopped", now.stopped),
    ):
        known = getattr(before, event_name) if before is not None else ()
        found += [(f"{id}: {text}", {"event": event_name, "id": id}) for id in ids if id not in known]
    return found


def outcome(standing: Standing | None, request: Request, *, elapsed: float, registered: bool = True) -> list[str]:
    """How a wait ended, in words. `standing` None: etcd never answered. `registered`: see `table`."""
    if standing is None:
        return [f"etcd has not answered within {elapsed:.0f} s: nothing is known of the fleet"]
    what = "running" if not request.on else "quiet" if request.quiet else "drained"
    done = [one.id for one in standing.live if one.id not in (*standing.waiting, *standing.expired, *standing.held)]
    lines = []
    match standing.result:
        case Result.SUPERSEDED:
            lines.append("the key was changed meanwhile, or has run out: nobody answers this request any more")
        case None:
            lines.append(f"not done within {elapsed:.0f} s; still waiting for {', '.join(standing.waiting)}")
        case Result.NONE:
            lines.append("no instance is registered under this key: there was nobody to wait for (--allow-none)")
        case Result.VANISHED:
            lines.append(
                f"{_count(done)} {what} after {elapsed:.1f} s, and {len(standing.died)} not heard of (--allow-vanished)"
            )
        case _ if not standing.expired:
            lines.append(f"{_count(done)} {what} after {elapsed:.1f} s")
    if standing.expired:
        lines.append(f"out of time before everything was finished: {', '.join(standing.expired)}")
    if standing.held:
        lines.append(f"kept in maintenance by their own key: {', '.join(standing.held)}")
    if standing.stopped:
        lines.append(f"stopped meanwhile, drained: {', '.join(standing.stopped)}")
    if standing.died:
        then = "; then `svc maintenance forget ID`" if registered else ""
        lines.append(f"vanished, drained or not: {', '.join(standing.died)}. Look after them{then}")
    return lines


def _count(ids: Sequence[str]) -> str:
    return "1 instance is" if len(ids) == 1 else f"{len(ids)} instances are"


class Screen:
    """Lines at the bottom of a terminal that are drawn over and over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = 0

    @property
    def room(self) -> int:
        """Lines that can be drawn over."""
        return max(4, shutil.get_terminal_size().lines - 2)

    def draw(self, lines: Sequence[str]) -> None:
        width = shutil.get_terminal_size().columns - 1
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone is no reason to fail
            self._stream.write(up + "\x1b[0J" + "".join(f"{line[:width]}\n" for line in lines))
            self._stream.flush()
        self._drawn = len(lines)
