"""The API's description and what is there are the same: routes, statuses, bodies, examples; and it reads well (`/docs`).

`tests/described.py` holds every answer of `tests/api/test_api.py` to the description; here the other way round: each
described answer is given once."""

import json
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
import trio
from trio.testing import MockClock

from svc.api import docs_page, feed, request_bodies, routes_page
from svc.api import openapi_examples as examples
from svc.api.openapi import DESCRIPTION
from svc.testing import Fault, SimulatedQueue
from tests.api import test_api_dead_letters, test_api_fleet, test_log_level
from tests.api.test_api import TOKEN, Api, in_phase, run, running
from tests.described import answers

OPERATIONS = [
    (method, path, operation) for path, item in DESCRIPTION["paths"].items() for method, operation in item.items()
]


def test_it_is_valid() -> None:
    import openapi_spec_validator  # a second, which only the worker that runs this needs to spend

    openapi_spec_validator.validate(DESCRIPTION, cls=openapi_spec_validator.OpenAPIV31SpecValidator)
    assert json.loads(json.dumps(DESCRIPTION)) == DESCRIPTION


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=lambda value: str(value)[:30])
def test_every_body_has_an_example_that_its_schema_admits(method: str, path: str, operation: Any) -> None:
    contents = [answer["content"] for answer in operation["responses"].values()]
    if "requestBody" in operation:
        contents.append(operation["requestBody"]["content"])
    for content in contents:
        if "application/json" not in content:
            continue
        held = content["application/json"]
        assert held["example"] is not None, f"{method} {path} has an answer without an example"
        jsonschema.Draft202012Validator({**held["schema"], "components": DESCRIPTION["components"]}).validate(
            held["example"]
        )


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=lambda value: str(value)[:30])
def test_every_operation_says_what_it_is_and_what_it_needs(method: str, path: str, operation: Any) -> None:
    assert operation["summary"]
    assert not operation["summary"].endswith(".")
    if method != "get":
        assert operation["security"][-1] == {"token": []}
        assert {"401", "403"} <= set(operation["responses"])


def shape(value: Any) -> Any:
    """The keys at every depth; of lists and of what goes by ids the first."""
    if isinstance(value, dict):
        return {name: shape(held) for name, held in value.items() if name not in ("attributes", "deferred")}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__ if value is not None else "none"


def differences(example: Any, real: Any, where: str = "") -> list[str]:
    """Where the keys or the types differ; a value that may be missing may be missing in either."""
    if isinstance(example, dict) and isinstance(real, dict):
        found = [f"{where}.{name}" for name in example.keys() ^ real.keys()]
        common = example.keys() & real.keys()
        return found + [one for name in common for one in differences(example[name], real[name], f"{where}.{name}")]
    if isinstance(example, list) and isinstance(real, list):
        return differences(example[0], real[0], where) if example and real else []
    if "none" in (example, real) or {example, real} <= {"int", "float"} or example == real:
        return []
    return [f"{where}: {example}, {real}"]


@pytest.mark.expects_errors
async def test_the_examples_look_like_real_answers(autojump_clock: MockClock) -> None:
    async def fail(message: Any) -> None:
        if message.body == "stays":
            await trio.sleep_forever()
        raise ValueError(message.body)

    dead_letters = SimulatedQueue("dlq")
    async with running(fail, queue=SimulatedQueue(dead_letters=dead_letters, max_receive_count=3)) as held:
        held.queue.put("x")
        held.queue.put("stays")
        await trio.sleep(6)
        pairs = [
            (examples.LIVE, (await held.get("/health/live"))[1]),
            (examples.READY, (await held.get("/health/ready"))[1]),
            (examples.HEALTH, (await held.get("/health"))[1]),
            (examples.STATS, (await held.get("/messages/stats"))[1]),
            (examples.QUEUE_INFO, (await held.get("/queue/info"))[1]),
            (examples.SENT, (await held.send(examples.SEND))[1]),
        ]
        held.switch.set('{"enabled": true, "reason": "x", "by": "y", "until": "2030-01-01T00:00:00Z"}')
        await trio.sleep(1)
        pairs += [
            (examples.STATS_IN_MAINTENANCE, (await held.get("/messages/stats"))[1]),
            (examples.UNHEALTHY, (await held.get("/health"))[1]),
        ]
    for example, real in pairs:
        assert differences(shape(example), shape(real)) == []
    assert examples.STATS["sqs"]["messages_received"] == sum(
        examples.STATS["sqs"][f"messages_{name}"]
        for name in ("processed", "failed", "in_flight", "released", "rejected", "lost")
    )


# -- each described answer is given once --

PATHS = [
    "/health/live",
    "/health/ready",
    "/health",
    "/metrics",
    "/messages/stats",
    "/queue/info",
    "/openapi.json",
    "/docs",
]


async def _ask_everything(api: Api) -> None:
    for path in (*PATHS, *routes_page.FILES):
        await api.client.get(path)
    await api.client.head("/events")
    await api.send()


async def _send_badly(api: Api) -> None:
    """With each header and body that a send refuses before the queue is asked."""
    token = {"Authorization": f"Bearer {TOKEN}"}
    await api.send()
    await api.send(Authorization="Bearer wrong-wrong")
    await api.send({"message": ""}, **token)
    await api.send({"message": "x" * (request_bodies.BODY_LIMIT + 1)}, **token)
    await api.send(Content_Type="text/plain", **token)
    headers = {"Content-Type": "application/json", **token}
    async with api.client.request("/messages/send", method="POST", headers=headers) as slow:
        await slow.send(b"{")
        await trio.sleep(11)


async def _many_watch(api: Api) -> None:
    held = [api.feed.watch() for _ in range(feed.MOST_WATCHERS)]
    await api.client.get("/events")
    for watcher in held:
        assert watcher is not None
        watcher.close()


async def test_each_described_answer_is_given(autojump_clock: MockClock, log_level_kept: None) -> None:
    met = set()
    for phase in ("running", "maintenance"):
        async with in_phase(phase) as (held, _):
            await _ask_everything(held)
            await _many_watch(held)
            met |= held.met
    async with running(API_TOKEN=TOKEN) as held:
        await run(held)
        await _send_badly(held)
        met |= held.met
    broken = [
        Fault("error", "send", end=50),
        Fault("error", "attributes", end=50),
        Fault("delay", start=50, seconds=100),
    ]
    async with running(queue=SimulatedQueue(faults=broken)) as held:
        await trio.sleep(6)
        for _ in range(2):
            await _ask_everything(held)
            await trio.sleep(60)
        met |= held.met
    met |= await test_api_fleet.meet_every_answer()
    met |= await test_log_level.meet_every_answer()
    met |= await test_api_dead_letters.meet_every_answer()
    assert answers(DESCRIPTION) - met == set(), "described, but not given"
    assert met - answers(DESCRIPTION) == set()


# -- the page for people --


class Reader(HTMLParser):
    """What a page holds: its texts, its ids, where its links lead; held to be balanced."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name != "style"
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src"):
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


async def test_the_docs_name_every_operation_and_lead_nowhere_outside(autojump_clock: MockClock) -> None:
    async with running() as held:
        await run(held)
        answer = await held.client.get("/docs")
        assert answer.headers["Content-Security-Policy"] == routes_page.POLICY
        reader = Reader(await answer.get_data(True))
    text = "".join(reader.texts)
    for method, path, operation in OPERATIONS:
        assert f"{method.upper()} {path}" in text
        assert operation["summary"] in text
    assert len(reader.ids) == len(set(reader.ids))
    for link in reader.links:
        assert link.startswith("/") or link[1:] in reader.ids, link
    assert "script" not in reader.tags


def test_the_docs_escape_what_they_show() -> None:
    hostile = "<script>alert('x')</script>&"
    document = {
        "info": {"title": hostile, "version": hostile, "description": hostile},
        "components": {"schemas": {"Thing": {"type": "object", "properties": {hostile: {"type": "string"}}}}},
        "paths": {
            f"/{hostile}": {
                "put": {
                    "summary": hostile,
                    "description": hostile,
                    "security": [{"token": []}],
                    "parameters": [{"name": hostile, "in": "path", "description": hostile}],
                    "requestBody": {
                        "content": {
                            "application/json": {
                                "schema": {"$ref": "#/components/schemas/Thing"},
                                "example": {"a": hostile},
                            }
                        }
                    },
                    "responses": {
                        "200": {
                            "description": hostile,
                            "content": {"application/json": {"example": {hostile: hostile}}},
                        }
                    },
                }
            }
        },
    }
    reader = Reader(docs_page.page(document))
    assert "script" not in reader.tags
    assert "".join(reader.texts).count("<script>") >= 10
