"""Snapshots → what the API shows: names, RFC 3339 times, bounded lists. Pure, but for reading the two clocks.

The parts of the service keep Trio's monotonic time; a time becomes a date here and nowhere else.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice

import trio

from svc.consumer.breaker_state import BreakerSnapshot
from svc.consumer.queue import DeadLetterQueue, QueueError
from svc.consumer.worker import WorkerStatistics
from svc.core import WatcherSnapshot
from svc.database.figures import DatabaseStatistics
from svc.maintenance.handler import DrainReport
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase
from svc.settings import Settings

SHOWN_IDS = 100
"""Message ids per list: answers have to stay small. The log line of a drain names them all."""


def now() -> str:
    return _rfc3339(utc_now())


def utc_now() -> datetime:
    return datetime.now(UTC)


def date(at: float | None) -> str | None:
    """The date of a Trio time."""
    if at is None:
        return None
    return _rfc3339(datetime.now(UTC) - timedelta(seconds=trio.current_time() - at))


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def switch(state: MaintenanceState) -> dict[str, object] | None:
    """The switch in force; when there is none, what the maintenance key says."""
    held = state.in_force or state.switch
    if held is None:
        return None
    return {
        "on": held.on,
        "reason": held.reason,
        "until": held.until,
        "by": held.by,
        "keys": list(state.keys_in_force),
    }


def fleet_or_not(settings: Settings) -> dict[str, object]:
    """What the switch is held in."""
    with_etcd = bool(settings.etcd_endpoints)
    return {
        "fleet": with_etcd,
        "key": settings.maintenance_key if with_etcd else None,
        "file": settings.maintenance_file,
    }


def switches(held: WatcherSnapshot, settings: Settings) -> dict[str, bool]:
    """Whether what the switch is held in can be read (`metrics.SWITCHES`)."""
    if settings.etcd_endpoints:
        return {"etcd": held.connected}
    return {} if settings.maintenance_file is None else {"file": held.connected}


def held_in(held: WatcherSnapshot, state: MaintenanceState, settings: Settings) -> dict[str, object]:
    """How things stand with what the switch is held in: etcd, or a file, or neither."""
    told: dict[str, object] = {"error": held.last_error, "ignored_value": state.unreadable}
    etcd = file = None
    if settings.etcd_endpoints:
        etcd = {
            "connected": held.connected,
            "since": date(held.since),
            "endpoint": held.endpoint,
            "key": settings.maintenance_key,
            "revision": held.revision,
            **told,
        }
    elif settings.maintenance_file is not None:
        file = {"path": settings.maintenance_file, "readable": held.connected, "since": date(held.since), **told}
    return {"fleet": etcd is not None, "etcd": etcd, "maintenance_file": file}


def drain(report: DrainReport | None) -> dict[str, object] | None:
    if report is None:
        return None
    ended = report.ended if report.ended is not None else trio.current_time()
    return {
        "cause": report.cause,
        "outcome": report.outcome.value,
        "began": date(report.began),
        "ended": date(report.ended),
        "quiet": date(report.quiet),
        "seconds": round(ended - report.began, 3),
        "deadline": date(report.deadline),
        "error": report.error if report.error is None or len(report.error) <= 8000 else report.error[:8000] + " …",
        **{name: _bounded(figures) for name, figures in report.handlers.items()},
    }


def _bounded(figures: Mapping[str, object]) -> dict[str, object]:
    """Lists of ids with their length, cut where they are long. (What is cut already comes with its own `…_count` after it.)"""
    shown: dict[str, object] = {}
    for name, value in figures.items():
        if isinstance(value, tuple):
            shown[name] = list(value[:SHOWN_IDS])
            shown[f"{name}_count"] = len(value)
        elif isinstance(value, Mapping):
            shown[name] = dict(list(value.items())[:SHOWN_IDS])
            shown[f"{name}_count"] = len(value)
        else:
            shown[name] = value
    return shown


def queue_trouble(held: WorkerStatistics, probe: tuple[str | None, float | None]) -> dict[str, object]:
    """What is wrong with the queue and since when: what receives say, else what the last health check said."""
    error, since = (held.queue_error, held.queue_error_since) if held.queue_error is not None else probe
    return {"queue_error": error, "queue_error_since": date(since)}


def threads(held: WorkerStatistics) -> dict[str, str]:
    """Those that go on although their message was given back, by message id; a hundred at most."""
    return dict(islice(held.threads.items(), SHOWN_IDS))


def breaker(held: BreakerSnapshot | None) -> dict[str, object] | None:
    if held is None:
        return None
    return {
        "state": held.state.value,
        "since": date(held.since),
        "until": date(held.until),
        "runs": held.runs,
        "failures": held.failures,
        "opened": held.opened,
        "reason": held.reason,
    }


def database(held: DatabaseStatistics) -> dict[str, object]:
    """The pool's figures under the names that psycopg_pool's users know, and why it is away."""
    pool = held.pool
    return {
        "database": held.place,
        "connected": pool.open,
        "error": held.error,
        "error_since": date(held.error_since),
        "size": pool.size,
        "max_size": pool.most,
        "in_use": pool.in_use,
        "idle": pool.idle,
        "waiting": pool.waiting,
        "requests": pool.requests,
        "waits": pool.waits,
        "wait_seconds": pool.wait_seconds,
        "errors": pool.errors,
    }


async def dead_letter_queue(ask: Callable[[], Awaitable[DeadLetterQueue | None]]) -> dict[str, object]:
    """The dead-letter queue and its depth, or why there is none to show: that is no reason not to show the queue itself."""
    try:
        found = await ask()
    except QueueError as error:
        return {"dead_letter_queue": None, "dead_letter_queue_error": str(error)}
    if found is None:
        return {"dead_letter_queue": None, "dead_letter_queue_error": "the queue has no redrive policy"}
    shown = {"url": found.url, "arn": found.arn, "attributes": dict(found.attributes)}
    return {"dead_letter_queue": shown, "dead_letter_queue_error": None}


def in_maintenance(state: MaintenanceState) -> bool:
    """Whether maintenance is on, drained or still draining."""
    return state.phase in (Phase.DRAINING, Phase.MAINTENANCE) or state.in_force is not None


def worker(
    held: WorkerStatistics, state: MaintenanceState, *, name: str, queue_url: str, drain_timeout: float
) -> dict[str, object]:
    counts = held.counts
    return {
        "handler_name": name,
        "handler_state": state.phase.value,
        "queue_url": queue_url,
        "in_maintenance": in_maintenance(state),
        "messages_received": counts.received,
        "messages_processed": counts.processed,
        "messages_failed": counts.failed,
        "messages_in_flight": counts.in_flight,
        "messages_released": counts.released,
        "messages_rejected": counts.rejected,
        "messages_lost": counts.lost,
        "messages_duplicate": held.duplicates,
        "last_message_time": date(held.last_message_at),
        "drain_timeout": drain_timeout,
        "receives_outstanding": held.receives_outstanding,
        "queue_error": held.queue_error,
        "queue_error_since": date(held.queue_error_since),
        "breaker": breaker(held.breaker),
        "threads": threads(held),
        "recent_errors": [
            {"timestamp": date(error.at), "message_id": error.message_id, "error": error.error[:1000]}
            for error in held.recent_errors
        ],
        "drain": drain(state.drain),
    }
