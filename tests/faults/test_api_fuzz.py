"""The API against its own description: whatever schemathesis makes of /openapi.json gets one of the answers that it
describes, in every phase of a real process: starting, running, draining, maintenance, stopping.

Of `/events`, which does not end, the first events are looked at."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from svc.api.openapi import DESCRIPTION
from svc.devstack.stack import Etcd, Moto
from tests.faults.trial import Row, Trial, trial

PHASES = ("starting", "running", "draining", "maintenance", "stopping")
ENDLESS = "3600"

PATIENCE = 8.0
"""Seconds that any answer may take: /health waits for SQS for 5 s, and the machine is busy."""


@asynccontextmanager
async def in_phase(phase: str, moto: Moto, etcd: Etcd, name: str, folder: Path) -> AsyncIterator[Trial]:
    """A service in this phase, for as long as the block lasts."""
    work = ENDLESS if phase in ("draining", "stopping") else "0"
    environ = {
        "MESSAGE_PROCESSOR": "svc.processors:simulated",
        "SIMULATED_WORK_SECONDS": work,
        "DRAIN_TIMEOUT": "10m",
    }
    async with trial(Row(phase, "", "", ""), moto, [etcd.endpoint], name, folder, **environ) as t:
        if phase == "starting":
            t.etcd.refuse()
        service = await t.start(load=False)
        if phase in ("draining", "stopping"):
            await t.send()
            await service.figure("messages_in_flight", 1)
        if phase in ("draining", "maintenance"):
            await t.switch("on")
        if phase == "stopping":
            service.signal(signal.SIGTERM)
        shown = {"running": "healthy", "stopping": "draining"}.get(phase, phase)
        await service.reaches(shown)
        yield t
        assert await service.status() == shown  # still
        assert not [line for line in service.logs if line["level"] in ("error", "critical")]
        if phase == "stopping":
            await service.logged("drain begins", cause="stop")


def fuzz(url: str, examples: int) -> int:
    """Every operation of the description, with what fits it and what does not; returns how many requests were made."""
    # Not at this file's import: it takes a second, and each of xdist's workers makes it.
    import hypothesis
    import requests
    import schemathesis
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_dict(DESCRIPTION)
    session = requests.Session()
    session.trust_env = False
    made = 0

    def ask(case: Any) -> None:
        nonlocal made
        made += 1
        answer = case.call(base_url=url, session=session, timeout=PATIENCE)
        assert answer.status_code != 500, case.as_curl_command()
        case.validate_response(answer, checks=checks)

    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/events":
            with session.get(f"{url}/events", stream=True, timeout=PATIENCE) as answer:
                answer._content = next(answer.iter_content(None))
                operation.Case().validate_response(answer, checks=checks)
            made += 1
            continue
        modes = [GenerationMode.POSITIVE]
        if operation.body:
            modes.append(GenerationMode.NEGATIVE)
        for mode in modes:
            budget = examples if operation.body else max(2, examples // 5)
            given = hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            bounded = hypothesis.settings(
                max_examples=budget,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            run: Callable[[], None] = bounded(given(ask))
            run()
    return made


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(phase, marks=[pytest.mark.faults(by_default=True), pytest.mark.slow])
        if phase == "running"
        else pytest.param(phase, marks=pytest.mark.faults)
        for phase in PHASES
    ],
)
async def test_the_api_keeps_to_its_description(
    phase: str, moto: Moto, etcd: Etcd, queue_name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = "faults" in (request.config.getoption("-m") or "")
    async with in_phase(phase, moto, etcd, queue_name, tmp_path) as t:
        made = await trio.to_thread.run_sync(partial(fuzz, t.service.url, 60 if whole else 5))
    assert made > 30
