"""The page's words and figures: snapshots → what `page/page.js` writes into the page. Pure, but for reading the two clocks.

The state is told in one title and one sentence, chosen here, so that a test can hold every case. Lists are short: the whole goes
out once a second. Texts from outside (message ids, errors, reasons) are passed on as they are, but cut: the page writes them as
text only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import trio

from svc import __version__
from svc.api import bodies
from svc.api.history import Sample
from svc.consumer.breaker_state import PROBES, BreakerSnapshot, State
from svc.consumer.ledger import Entry
from svc.consumer.queue import number_in
from svc.consumer.worker import WorkerStatistics
from svc.core import Core
from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase

SHOWN = 20
"""Messages in flight, and ids per list."""

LONGEST = 500
"""Characters of a text from outside."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What a queue said of its depth."""

    asked_at: float
    """Trio time of the answer."""
    attributes: Mapping[str, str] | None
    error: str | None = None
    """Why there was no answer."""


def state(core: Core, depth: Depth | None, dead_letters: Depth | None = None) -> dict[str, Any]:
    """Everything but the charts. `dead_letters`: of the dead-letter queue, where there is one."""
    now = trio.current_time()
    held, maintenance, watcher = core.worker.statistics(), core.manager.state(), core.watcher.snapshot()
    kind, title, text = headline(maintenance, held, core.worker.probe_error)
    counts = held.counts
    report = maintenance.drain
    return {
        "version": __version__,
        "timestamp": bodies.now(),
        "phase": maintenance.phase.value,
        "kind": kind,
        "title": title,
        "text": text,
        "troubles": troubles(
            maintenance,
            held,
            watcher.connected,
            now - watcher.since,
            watcher.last_error,
            core.settings.maintenance_file,
        ),
        "switch": bodies.switch(maintenance) if maintenance.in_force is not None else None,
        "key": core.settings.maintenance_key if core.settings.etcd_endpoints else None,
        "file": core.settings.maintenance_file,
        "fleet": core.registrar is not None,
        "can_switch": core.settings.api_token is not None,
        "queue_url": core.settings.sqs_queue_url,
        "counts": {name: getattr(counts, name) for name in counts.__slots__},
        "receives_outstanding": held.receives_outstanding,
        "in_flight": [_in_flight(entry, now) for entry in islice(core.worker.ledger, SHOWN)],
        "depth": _depth(depth, now),
        "dead_letters": _dead_letters(dead_letters),
        "drain": _running_drain(report, counts.in_flight, now),
        "report": None if report is None or report.ended is None else _ended_drain(report, now),
        "errors": [
            {"seconds": round(now - error.at, 1), "id": error.message_id, "error": error.error[:LONGEST]}
            for error in reversed(held.recent_errors)
        ],
    }


def headline(state: MaintenanceState, held: WorkerStatistics, probe_error: str | None) -> tuple[str, str, str]:
    """The state in plain words: its kind (the page's colour and sign), a title and a sentence."""
    count = held.counts.in_flight
    report = state.drain
    expired = report is not None and report.outcome is DrainOutcome.EXPIRED
    match state.phase:
        case Phase.STARTING if state.unreadable:
            return (
                "trouble",
                "Waiting for a usable maintenance switch",
                "Nothing is received before its value makes sense.",
            )
        case Phase.STARTING:
            return "starting", "Starting", "Nothing is received before the maintenance switch has been read once."
        case Phase.RUNNING if held.queue_error or probe_error:
            return (
                "trouble",
                "The queue is out of reach",
                f"{_messages(count)} in flight. Receiving is tried again, less and less often, until it works.",
            )
        case Phase.RUNNING if held.breaker is not None and held.breaker.reason is not None:
            return (
                "trouble",
                "Receiving pauses",
                f"{held.breaker.reason}. It goes on by itself. {_messages(count)} in flight.",
            )
        case Phase.RUNNING if held.breaker is not None and held.breaker.state is not State.CLOSED:
            title = "Receiving pauses" if held.breaker.state is State.OPEN else "Trying a few messages"
            return (
                "trouble",
                title,
                f"Nearly every message failed: see the recent errors. {_messages(count)} in flight.",
            )
        case Phase.RUNNING:
            return "running", "Running", "Messages are received and processed."
        case Phase.DRAINING if state.quiet:
            return "draining", "Landing", f"Nothing is at work, and nothing begins. {_left(held)}, then all is drained."
        case Phase.DRAINING:
            return "draining", "Draining", f"Nothing new is taken. {_left(held)}, then maintenance begins."
        case Phase.STOPPING:
            return (
                "draining",
                "Draining before the stop",
                f"Nothing new is taken. {_left(held)}, then the process ends.",
            )
        case Phase.MAINTENANCE if expired:
            return (
                "expired",
                "In maintenance, but the drain ran out of time",
                "Nothing is received. Not everything was finished: the report below names what was not.",
            )
        case Phase.MAINTENANCE:
            return (
                "maintenance",
                "In maintenance",
                "Everything is drained. Nothing is received until it is switched off.",
            )
        case Phase.STOPPED if expired:
            return "expired", "Stopped, but the drain ran out of time", "The report below names what was not finished."
        case _:
            return "stopped", "Stopped", "Everything is drained."


def _left(held: WorkerStatistics) -> str:
    if held.counts.in_flight:
        return f"{_messages(held.counts.in_flight)} still to finish"
    if held.receives_outstanding:
        return "Only a receive that is still open is waited for"
    if held.threads:
        return f"Only threads that were left behind are waited for ({len(held.threads)})"
    return "The last answers are awaited"


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def troubles(
    state: MaintenanceState,
    held: WorkerStatistics,
    connected: bool,
    seconds: float,
    switch_error: str | None,
    file: str | None = None,
) -> list[dict[str, str]]:
    """What is wrong beside the state, and what it means. `connected`, `seconds`, `switch_error`: how the switch stands, and since
    when; it is in etcd, or in `file`."""
    found: list[dict[str, str]] = []
    if state.phase is Phase.STOPPED:
        return found
    if not connected:
        title, unknown, back = "etcd is out of reach", "it answers", "etcd is back"
        if file is not None:
            title, unknown, back = "The maintenance file cannot be read", "it can be", "it can be read"
        known = "The last known state stands" if state.switch is not None else f"Nothing is received until {unknown}"
        told = f": {switch_error}" if switch_error else ""
        found.append(
            {"title": title, "text": f"For {duration(seconds)}{told}. {known}; a change takes effect when {back}."}
        )
    if held.queue_error:
        since = (
            "" if held.queue_error_since is None else f"For {duration(trio.current_time() - held.queue_error_since)}: "
        )
        found.append({"title": "SQS does not answer as it should", "text": f"{since}{held.queue_error}"})
    if held.breaker is not None and held.breaker.state is not State.CLOSED and not _is_held_in_maintenance(held, state):
        found.append(_breaker(held.breaker, state.phase))
    if state.unreadable:
        found.append({"title": "The maintenance switch's value is ignored", "text": f"{state.unreadable}."})
    return [{name: text[:LONGEST] for name, text in trouble.items()} for trouble in found]


def _is_held_in_maintenance(held: WorkerStatistics, state: MaintenanceState) -> bool:
    """That nothing is received is no trouble then."""
    return held.breaker is not None and held.breaker.reason is not None and state.phase is not Phase.RUNNING


def _breaker(held: BreakerSnapshot, phase: Phase) -> dict[str, str]:
    assert held.since is not None
    now = trio.current_time()
    if held.reason is not None:
        return {"title": "What processors need is away", "text": f"For {duration(now - held.since)}: {held.reason}."}
    if held.state is State.PROBING:
        text = f"Up to {PROBES} messages are tried: the first that succeeds lets receiving go on, else it pauses again."
        return {"title": "The circuit breaker is probing", "text": text}
    if phase is Phase.RUNNING and held.until is not None:
        tried = f"it tries a few messages again in {duration(held.until - now)}"
    else:
        tried = "a few messages are tried when receiving begins again"
    text = f"Receiving pauses, since {duration(now - held.since)}, because nearly every message failed; {tried}."
    return {"title": "The circuit breaker is open", "text": text}


def duration(seconds: float) -> str:
    """In words, as long as one reads at a glance."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _in_flight(entry: Entry, now: float) -> dict[str, Any]:
    doing = "settling" if not entry.is_undecided else "waiting" if entry.scope is None else "processing"
    return {
        "id": entry.message.id,
        "seconds": round(now - entry.landed_at, 1),
        "doing": doing,
        "receives": entry.message.receive_count,
    }


def _depth(depth: Depth | None, now: float) -> dict[str, Any] | None:
    if depth is None:
        return None
    shown: dict[str, Any] = {"seconds": round(now - depth.asked_at, 1), "error": depth.error and depth.error[:LONGEST]}
    return shown | _counts(depth)


def _dead_letters(depth: Depth | None) -> dict[str, Any] | None:
    if depth is None:
        return None
    counts = [count for count in _counts(depth).values() if count is not None]
    return {"count": sum(counts) if counts else None, "error": depth.error and depth.error[:LONGEST]}


def _counts(depth: Depth) -> dict[str, int | None]:
    names = {
        "visible": "ApproximateNumberOfMessages",
        "in_flight": "ApproximateNumberOfMessagesNotVisible",
        "delayed": "ApproximateNumberOfMessagesDelayed",
    }
    return {name: number_in(depth.attributes or {}, attribute) for name, attribute in names.items()}


def _running_drain(report: DrainReport | None, in_flight: int, now: float) -> dict[str, Any] | None:
    if report is None or report.ended is not None:
        return None
    sqs = report.handlers.get("sqs", {})
    total = _number(sqs, "in_flight") + _number(sqs, "receives_brought")
    return {
        "cause": report.cause,
        "total": total,
        "done": max(0, total - in_flight),
        "seconds": round(now - report.began, 1),
        "seconds_left": round(max(0.0, report.deadline - now), 1),
        "seconds_allowed": round(report.deadline - report.began, 1),
    }


def _ended_drain(report: DrainReport, now: float) -> dict[str, Any]:
    assert report.ended is not None
    sqs = report.handlers.get("sqs", {})
    figures = (
        "in_flight",
        "receives_brought",
        "completed",
        "failed",
        "released",
        "rejected",
        "lost",
        "receives_unlanded",
    )
    lists = (
        "timed_out",
        "stubborn",
        "next_receive_dead_letters",
        "last_receives_returned",
        "unsettled",
        "lost_ids",
    )
    return {
        "cause": report.cause,
        "outcome": report.outcome.value,
        "seconds": round(report.ended - report.began, 1),
        "ago": round(now - report.ended, 1),
        "figures": {name: _number(sqs, name) for name in figures},
        "requests": _number(report.handlers.get("http", {}), "under_way"),
        "requests_unfinished": _number(report.handlers.get("http", {}), "unfinished"),
        "lists": {name: _ids(sqs.get(name)) for name in lists},
    }


def _number(figures: Mapping[str, object], name: str) -> int:
    value = figures.get(name, 0)
    return value if isinstance(value, int) else 0


def _ids(value: object) -> dict[str, Any]:
    ids = value if isinstance(value, tuple) else ()
    return {"count": len(ids), "ids": list(ids[:SHOWN])}


def charts(samples: Sequence[Sample], *, every: float, kept: int) -> dict[str, Any]:
    """The samples as columns, oldest first; rates are per second."""
    now = trio.current_time()
    return {
        "span": every * kept,
        "every": every,
        "ago": [round(now - sample.at, 1) for sample in samples],
        "processed": [round(sample.processed / sample.seconds, 3) for sample in samples],
        "failed": [sample.failed for sample in samples],
        "in_flight": [sample.in_flight for sample in samples],
    }
