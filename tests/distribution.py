"""Which of xdist's workers runs which test: some wait (for processes, leases, timeouts), the others compute, and there is some of
both at all times.

What runs in real time stands at the front of one queue, what computes at its end. One worker of four takes from the end, one from
either in turn, the others from the front, and all go on until nothing is left: the last are those that compute, which keep every
core busy. In the front, what only waits alternates with what starts programs. What computes is handed out by files, so that a
file's fixtures are made once, and with less talk; what runs in real time test by test, for a file of it can take half a minute.
(Not by xdist's own marks: `xdist_group` of xdist 3.8 does nothing with pytest 9.1 and later.)
"""

from collections import OrderedDict
from itertools import takewhile

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

WAITS = (
    "tests/faults/",  # the longest first
    "tests/service/test_alone.py",
    "tests/service/test_live.py",
    "tests/etcd/test_registration_thread.py",
    "tests/etcd/test_etcd_fleet.py::test_it_is_kept_through_etcds_grpc_proxy",
    "tests/etcd/test_etcd_fleet.py::test_a_lease_that_was_lost_is_replaced",
    "tests/sqs/test_sqs.py::test_a_server_that_never_answers",
    "tests/service/",
    "tests/api/test_hostile_http.py",
    "tests/api/test_connection_limit.py",
    "tests/etcd/",
    "tests/sqs/test_sqs.py",
    "tests/telemetry/test_cloudwatch.py",
    "tests/testing/test_queue_contract.py",
)
"""Files, folders, and single tests that would stand alone at the end of the run."""

STARTS_PROGRAMS = (
    "tests/api/test_page_browser.py",
    "tests/testing/test_harness.py",
    "tests/database/",
    "tests/cli/",
    "tests/bench/",
    "tests/devstack/",
    "tests/telemetry/test_tracing.py",
    "tests/sqs/test_dead_letters.py",
)

REAL_TIME = (*WAITS, *STARTS_PROGRAMS)
ONE_BY_ONE = (*REAL_TIME, "tests/api/test_api.py", "tests/search/", "tests/consumer/test_worker.py")

TOGETHER = {
    "tests/api/test_page_browser.py": "the browser",
    "tests/test_architecture.py": "the source",
    "tests/telemetry/test_logs.py": "the source",
    "tests/database/test_dev.py": "the database",
    "tests/database/test_handler.py": "the database",
    "tests/database/test_inbox.py": "the database",
    "tests/database/test_inbox_live.py": "the database",
    "tests/database/test_pool.py": "the database",
    "tests/sqs/test_dead_letters.py": "the plugin's stack",
    "tests/testing/test_harness.py": "the plugin's stack",
}
"""Files that share what is dear, with each other or with themselves."""


def in_order(items: list[pytest.Item]) -> None:
    """What runs in real time first, of either kind in turn."""
    places: dict[pytest.Item, float] = {}
    for paths in (WAITS, STARTS_PROGRAMS):
        found = [item for item in items if item.nodeid.startswith(paths)]
        found.sort(key=lambda item: next(place for place, path in enumerate(paths) if item.nodeid.startswith(path)))
        places |= {item: number / len(found) for number, item in enumerate(found)}
    items.sort(key=lambda item: places.get(item, 1))


class FromBothEnds(LoadScopeScheduling):
    """In the controller."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return TOGETHER.get(path, nodeid if path.startswith(ONE_BY_ONE) else path)

    def _assign_work_unit(self, node: WorkerController) -> None:
        queue: OrderedDict[str, dict[str, bool]] = self.workqueue
        number, taken = self.nodes.index(node), len(self.assigned_work[node])
        if number % 4 == 1 or (number % 4 == 3 and taken % 2):
            queue.move_to_end(next(reversed(queue)), last=False)
        super()._assign_work_unit(node)

    def _pending_of(self, workload: dict[str, dict[str, bool]]) -> int:
        """A worker does its work in order. xdist counts what is done, too, after each test."""
        return sum(takewhile(bool, (list(unit.values()).count(False) for unit in reversed(workload.values()))))
