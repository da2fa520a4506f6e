"""`@processor(...)`: typed payloads and envelopes, as a processor's author uses them; in virtual time, with the harness."""

import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from typing_extensions import TypedDict

from svc import Message, Retry, processor
from svc.processors import (
    EventBridgeEnvelope,
    InvalidMessage,
    Peeled,
    Reject,
    S3Envelope,
    S3Record,
    SnsEnvelope,
    UnusableProcessor,
    check,
    opened,
)
from svc.testing import ScriptedQueue, SimulatedQueue, SimulatedService, event_body
from svc.testing.envelopes import MESSAGE_ID, TIME


class Order(pydantic.BaseModel):
    id: int
    lines: list[str] = []


@dataclass
class Parcel:
    weight: float


class Note(TypedDict):
    text: str


SNS = {
    "Type": "Notification",
    "MessageId": "n-1",
    "TopicArn": "arn:aws:sns:eu-west-1:123456789012:orders",
    "Subject": "an order",
    "Timestamp": "2026-11-28T10:00:00.000Z",
    "Message": '{"id": 7}',
    "MessageAttributes": {
        "kind": {"Type": "String", "Value": "new"},
        "blob": {"Type": "Binary", "Value": "AAE="},
    },
}

EVENT = {
    "version": "0",
    "id": "e-1",
    "detail-type": "order placed",
    "source": "shop",
    "account": "123456789012",
    "time": "2026-11-28T10:00:00Z",
    "region": "eu-west-1",
    "resources": ["arn:aws:s3:::b"],
    "detail": {"id": 7},
}

S3 = {
    "Records": [
        {
            "eventName": "ObjectCreated:Put",
            "eventTime": "2026-11-28T10:00:00.000Z",
            "awsRegion": "eu-west-1",
            "s3": {"bucket": {"name": "in"}, "object": {"key": "a+b/%C3%BC.csv", "size": 3}},
        },
        {"eventName": "ObjectRemoved:Delete", "s3": {"bucket": {"name": "in"}, "object": {"key": "c"}}},
    ]
}


async def called(function: Callable[..., object], body: str) -> None:
    """Call it for one message, as the service does."""
    async with opened(check(function, "handle"), None, threads=1) as process:
        await process(Message("m-1", body))


async def seen(annotation: object, body: str, **options: Any) -> list[object]:
    found: list[object] = []

    async def handle(payload, message) -> None:  # type: ignore[no-untyped-def]
        found.extend((payload, message))

    handle.__annotations__ = {"payload": annotation, "message": Message}
    await called(processor(**options)(handle), body)
    return found


# -- payloads --


@pytest.mark.parametrize(
    ("annotation", "body", "payload"),
    [
        (Order, '{"id": 7, "lines": ["a"]}', Order(id=7, lines=["a"])),
        (Parcel, '{"weight": 2}', Parcel(2.0)),
        (Note, '{"text": "x"}', {"text": "x"}),
        (dict, '{"a": [1]}', {"a": [1]}),
        (list[int], "[1, 2]", [1, 2]),
        (Order | list[int], "[1]", [1]),
        (str, "as it is", "as it is"),
        (bytes, "ü", "ü".encode()),
        (Order, '\ufeff{"id": 7}', Order(id=7)),
        (dict, '{"a": 1, "a": 2}', {"a": 2}),  # the last of two equal keys counts, as in Python's json
    ],
)
async def test_the_body_as_the_type_of_the_first_parameter(annotation: object, body: str, payload: object) -> None:
    got, message = await seen(annotation, body)
    assert got == payload
    assert isinstance(message, Message)
    assert message.body == body


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"id": "secret"}', "id: Input should be a valid integer"),
        ("{}", "id: Field required"),
        ("no json", "Invalid JSON"),
        ("", "Invalid JSON"),
        ('{"id": ' + "[" * 10_000, "recursion limit exceeded"),
        ('{"id": NaN}', "id: Input should be a finite number"),
        ('{"id": 7, "lines": [1]}', "lines.0: Input should be a valid string"),
    ],
)
async def test_what_is_not_valid_is_rejected_with_its_fields_and_without_its_values(body: str, reason: str) -> None:
    with pytest.raises(Reject) as raised:
        await seen(Order, body)
    assert reason in raised.value.reason
    assert raised.value.reason.startswith("not a valid Order: ")
    assert "secret" not in raised.value.reason
    with pytest.raises(InvalidMessage, match=reason.replace("(", r"\(")):
        await seen(Order, body, invalid="fail")


class Cash(pydantic.BaseModel):
    kind: Literal["cash"]


class Card(pydantic.BaseModel):
    kind: Literal["card"]
    limits: dict[str, int]


Payment = Annotated[Cash | Card, pydantic.Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("annotation", "body", "reason"),
    [
        (dict[str, int], '{"card 4111 secret": "x"}', "…: Input should be a valid integer"),
        (dict[str, int], '{"9999999999999999": "x"}', "…: Input should be a valid integer"),
        (Payment, '{"kind": "card", "limits": {"secret@home": "x"}}', "card.limits.…: Input should be a valid integer"),
        (Payment, '{"kind": "secret"}', "body: its 'kind' is none of 'cash', 'card'"),
    ],
)
async def test_keys_and_tags_that_are_data_are_not_told(annotation: object, body: str, reason: str) -> None:
    with pytest.raises(Reject) as raised:
        await seen(annotation, body)
    assert reason in raised.value.reason
    assert not any(data in raised.value.reason for data in ("secret", "9999"))


async def test_bytes_of_an_envelope_that_utf_8_has_no_form_for_are_rejected() -> None:
    body = json.dumps({**SNS, "Message": "secret \ud800"})
    with pytest.raises(Reject, match="not valid bytes") as raised:
        await seen(bytes, body, envelope="sns")
    assert "secret" not in raised.value.reason


@given(st.text())
def test_no_body_gives_anything_but_a_rejection(body: str) -> None:
    for annotation in (Order, dict, Note):
        _outcome(annotation, body)
    for envelope in ("sns", "eventbridge", "s3"):
        _outcome(Order, body, envelope=envelope)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SNS, *EVENT, "Records", "s3", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.one_of(_JSON, st.fixed_dictionaries(dict.fromkeys(SNS, _JSON)), st.fixed_dictionaries({"Records": _JSON})))
def test_no_envelope_gives_anything_but_a_rejection(body: object) -> None:
    for envelope in ("sns", "eventbridge", "s3"):
        _outcome(dict, json.dumps(body), envelope=envelope)
        _outcome(dict, json.dumps({**SNS, "MessageAttributes": body}), envelope=envelope)


def _outcome(annotation: object, body: str, **options: Any) -> None:
    from svc.processors.arguments import prepared
    from svc.processors.options import options_of

    def handle(payload) -> None: ...  # type: ignore[no-untyped-def]

    handle.__annotations__ = {"payload": annotation}
    marked = options_of(processor(**options)(handle))
    assert marked is not None
    try:
        prepared(handle, marked, "handle")(Message("m", body))
    except Reject:
        return


async def test_a_plain_def_and_a_method_and_one_parameter() -> None:
    got: list[object] = []

    @processor()
    def in_a_thread(order: Order) -> None:
        got.append(order)

    class Shop:
        @processor()
        async def handle(self, order: Order, message: Message) -> None:
            got.append(message.id)

    await called(in_a_thread, '{"id": 1}')

    @processor()
    async def optional(order: Order, message: Message | None = None) -> None:
        got.append(message and message.id)

    @processor()
    async def with_a_default(order: Order, retries: int = 3) -> None:
        got.append(retries)

    await called(Shop().handle, '{"id": 2}')
    await called(optional, '{"id": 3}')
    await called(with_a_default, '{"id": 4}')
    assert got == [Order(id=1), "m-1", "m-1", 3]


async def test_a_context_manager_says_it_for_what_it_yields() -> None:
    got: list[object] = []

    @processor(invalid="fail")
    @asynccontextmanager
    async def shop():  # type: ignore[no-untyped-def]
        async def handle(order: Order) -> None:
            got.append(order)

        yield handle

    await called(shop, '{"id": 3}')
    assert got == [Order(id=3)]
    with pytest.raises(InvalidMessage):
        await called(shop, "x")


async def test_a_message_parameter_gets_the_message_and_no_decorator_changes_nothing() -> None:
    got: list[object] = []

    @processor(envelope="sns")
    async def with_message(message: Message) -> None:
        got.append(message.body)

    async def undecorated(order: Order) -> None:
        got.append(type(order))

    await called(with_message, json.dumps(SNS))
    await called(undecorated, "no json")
    assert got == ['{"id": 7}', Message]


def unreadable(order: "NoSuchType") -> None: ...  # type: ignore[name-defined]  # noqa: F821


def three(a: Order, b: Message, c: int) -> None: ...


def two_messages(a: Message, b: Message) -> None: ...


def second_is_no_message(a: Order, b: Order) -> None: ...


def keyword_only(a: Order, *, b: int) -> None: ...


def nobody_can(a: object(), b: Message) -> None: ...  # type: ignore[valid-type]


def none_at_all() -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (unreadable, "annotations cannot be read: NameError"),
        (three, "cannot be called with a payload and a message"),
        (keyword_only, "cannot be called with a payload and a message"),
        (none_at_all, "cannot be called with a payload and a message"),
        (two_messages, "cannot have a second one"),
        (second_is_no_message, "second parameter can only be a svc.Message"),
        (nobody_can, "the type of its first parameter cannot be validated"),
    ],
)
async def test_what_cannot_be_called_is_found_at_the_start(function: Callable[..., object], words: str) -> None:
    with pytest.raises(UnusableProcessor, match=words):
        await called(processor()(function), "{}")


@pytest.mark.parametrize("options", [{"envelope": "sms"}, {"envelope": ["sns", 3]}, {"invalid": "delete"}])
def test_an_option_that_is_none_is_a_value_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        processor(**options)


# -- envelopes --


async def test_sns() -> None:
    order, message = await seen(Order, json.dumps(SNS), envelope="sns")
    assert order == Order(id=7)
    assert isinstance(message, Message)
    assert message.envelope == SnsEnvelope(
        "arn:aws:sns:eu-west-1:123456789012:orders",
        "n-1",
        "an order",
        "2026-11-28T10:00:00.000Z",
        {"kind": "new", "blob": b"\x00\x01"},
    )
    assert message.raw == json.dumps(SNS)
    assert message.body == '{"id": 7}'


async def test_eventbridge() -> None:
    order, message = await seen(Order, json.dumps(EVENT), envelope="eventbridge")
    assert order == Order(id=7)
    assert isinstance(message, Message)
    assert message.envelope == EventBridgeEnvelope(
        "e-1", "shop", "order placed", "2026-11-28T10:00:00Z", "123456789012", "eu-west-1", ("arn:aws:s3:::b",)
    )


async def test_s3_with_several_records_is_one_delivery() -> None:
    records, message = await seen(list[dict[str, Any]], json.dumps(S3), envelope="s3")
    assert records == S3["Records"]
    assert isinstance(message, Message)
    assert message.envelope == S3Envelope(
        (
            S3Record("ObjectCreated:Put", "in", "a b/ü.csv", 3, None, "2026-11-28T10:00:00.000Z", "eu-west-1"),
            S3Record("ObjectRemoved:Delete", "in", "c"),
        )
    )


async def test_nested_envelopes_are_taken_off_in_the_order_said() -> None:
    body = json.dumps({**SNS, "Message": json.dumps(EVENT)})
    order, message = await seen(Order, body, envelope=("sns", "eventbridge"))
    assert order == Order(id=7)
    assert isinstance(message, Message)
    assert [type(one) for one in message.envelopes] == [SnsEnvelope, EventBridgeEnvelope]
    assert message.envelope is message.envelopes[1]
    with pytest.raises(Reject, match="no EventBridge envelope"):
        await seen(Order, body, envelope=("eventbridge", "sns"))


async def test_the_harness_writes_what_is_read(autojump_clock: object) -> None:
    seen: list[tuple[object, object]] = []

    async def put(envelope: Any, send: Callable[[ScriptedQueue], str]) -> str:
        @processor(envelope=envelope)
        async def handle(payload: Any, message: Message) -> None:
            seen.append((payload, message.envelope))

        queue = ScriptedQueue()
        async with SimulatedService(queue, handle) as service:
            return await service.outcome(send(queue))

    sns = SnsEnvelope("arn:t", MESSAGE_ID, "s", TIME, {"a": "ü", "n": "1", "b": b"\xff"})
    attributes = {"a": "ü", "n": 1, "b": b"\xff"}
    send = partial(ScriptedQueue.put_sns, payload={"id": 7}, topic_arn="arn:t", subject="s", attributes=attributes)
    assert await put("sns", send) == "processed"
    assert (
        await put("eventbridge", lambda queue: queue.put_event({"id": 7}, source="shop", detail_type="x"))
        == "processed"
    )
    event = EventBridgeEnvelope(MESSAGE_ID, "shop", "x", TIME, "123456789012", "eu-west-1")
    nested = ("sns", "eventbridge")
    assert (
        await put(nested, lambda queue: queue.put_sns(event_body([1], source="shop", detail_type="x"))) == "processed"
    )
    assert await put("s3", lambda queue: queue.put_s3("a b/ü+.csv", "c", bucket="in", size=3)) == "processed"
    assert [one for _, one in seen[:3]] == [sns, event, event]
    assert [payload for payload, _ in seen[:3]] == [{"id": 7}, {"id": 7}, [1]]
    records = seen[3][1]
    assert isinstance(records, S3Envelope)
    assert [(one.bucket, one.key, one.size) for one in records.records] == [("in", "a b/ü+.csv", 3), ("in", "c", 3)]
    with pytest.raises(ValueError, match="at least one key"):
        ScriptedQueue().put_s3()


async def test_an_envelope_of_one_s_own() -> None:
    def peel(body: str) -> Peeled:
        head, _, rest = body.partition("|")
        if not rest:
            raise ValueError("there is no head")
        return Peeled(rest, head)

    order, message = await seen(Order, 'v1|{"id": 7}', envelope=peel)
    assert order == Order(id=7)
    assert isinstance(message, Message)
    assert message.envelope == "v1"
    with pytest.raises(Reject, match="there is no head"):
        await seen(Order, "{}", envelope=peel)
    with pytest.raises(TypeError, match="returned a str"):
        await seen(Order, "{}", envelope=lambda body: body)


@pytest.mark.parametrize(
    ("envelope", "body", "words"),
    [
        (
            "sns",
            {"Type": "SubscriptionConfirmation", "TopicArn": "arn:t", "Token": "secret"},
            "Confirmation of arn:t",
        ),
        ("s3", {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "in"}, "S3's test event of in"),
    ],
)
async def test_what_carries_no_payload_is_told_and_deleted(envelope: str, body: object, words: str) -> None:
    with capture_logs() as lines:
        assert await seen(Order, json.dumps(body), envelope=envelope) == []
    (line,) = lines
    assert words in line["message"]
    assert "secret" not in str(line)


# -- end to end, in virtual time --


async def test_an_invalid_message_burns_no_receives_and_keeps_its_bytes(autojump_clock: object) -> None:
    queue = SimulatedQueue(dead_letters=SimulatedQueue(name="dead"), max_receive_count=5)
    good, bad = json.dumps(SNS), json.dumps({**SNS, "Message": '{"id": "x"}'})

    @processor(envelope="sns")
    async def handle(order: Order, message: Message) -> None:
        if message.receive_count == 1:
            raise Retry(after=1)

    async with SimulatedService(queue, handle) as service:
        queue.put(good)
        queue.put(bad)
        assert await service.outcome(bad) == "rejected"
        assert await service.outcome(good, nth=2) == "processed"
    assert service.rejected == [bad]
    assert service.dead_lettered == [bad]  # as it came: the dead-letter copy holds the envelope too


async def test_what_a_decorated_context_manager_yields_may_take_a_payload_and_a_message() -> None:
    got: list[object] = []

    @processor()
    @asynccontextmanager
    async def shop():  # type: ignore[no-untyped-def]
        async def handle(order: Order, message: Message) -> None:
            got.append((order, message.id))

        yield handle

    await called(shop, '{"id": 3}')
    assert got == [(Order(id=3), "m-1")]
