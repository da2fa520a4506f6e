"""The marker `faults`, the option `--faults-table`, and what an ordinary run takes of them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

import pytest

from tests.faults import table
from tests.faults.rows import GROUPS

ROW = "faults_row"
HELD = "svc/faults"
"""Where pytest's cache has the rows of the last run that held."""

_rows = pytest.StashKey[dict[str, dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", metavar="FILE", help="write the table of faults, when every row has held")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_rows] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `-m` there is only the slice. (It runs the first: these trials wait more than they work.)"""
    if "faults" in (config.getoption("-m") or "") or any("test_fault[" in argument for argument in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("faults") and not _by_default(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _by_default(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("faults")
    return marker is not None and bool(marker.kwargs.get("by_default"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and _config is not None:
        for name, value in report.user_properties:
            if name == ROW:
                assert isinstance(value, dict)
                _config.stash[_rows][value["name"]] = value


_config: pytest.Config | None = None


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Iterator[None]:
    global _config
    _config = session.config
    return (yield)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The table is that of a whole run. One in which rows failed may be completed by those rows alone, with `--last-failed`."""
    config = session.config
    wanted = config.getoption("--faults-table")
    if hasattr(config, "workerinput") or not wanted:
        return
    from tests.faults.rows import all_scenarios

    rows = config.stash[_rows]
    if config.cache is not None:
        if config.getoption("lf"):
            rows = {**config.cache.get(HELD, {}), **rows}
        config.cache.set(HELD, rows)
    missing = [one.name for one in all_scenarios() if one.name not in rows]
    if exitstatus != 0 or missing:
        print(f"\nno table is written to {wanted}: not every row has held, or was tried ({', '.join(missing)})")
        return
    ordered = [rows[one.name] for one in all_scenarios()]
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    foot = f"{len(ordered)} rows, {when}, Python {python_version()}.\n"
    Path(wanted).write_text(table.text(ordered, GROUPS, foot))
    print(f"\n{len(ordered)} rows written to {wanted}")
