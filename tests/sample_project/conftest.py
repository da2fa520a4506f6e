"""Keeps the project's tests out of svc's own run; in a run of the project itself (tests/deploy/test_wheel.py) it does nothing."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.rootpath == Path(__file__).parent else True
