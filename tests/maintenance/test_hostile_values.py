"""Whatever stands in etcd (the switch, a registration), in an order, and in the announcement of `svc dev`: understood, or refused
with the one exception of that parser, and what is kept can be shown and counted on. Pure; generated."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from svc.devstack.announcement import Announced, announced, find_announced
from svc.maintenance import fleet_table
from svc.maintenance.fleet import Answer, Fleet, Request, Wait, answer
from svc.maintenance.orders import NotYours, Order, read_order
from svc.maintenance.registration import Acknowledgement, Registration, entry
from svc.maintenance.switch_value import Switch, parse_switch

# Of any form, with what is rare in ordinary JSON: lone surrogates, direction marks, huge numbers, NaN.
ODD_TEXT = st.text(max_size=20) | st.sampled_from(["\x1b[2J", "\u202egnp", "\ud800", "a\nb", "\0", "", "x" * 2000])
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**64, -1, 10**400, True, False])
ANY = st.recursive(
    st.none() | NUMBERS | ODD_TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXT, inner), max_leaves=12
)  # fmt: skip

GOOD = json.loads(
    Registration("a", "h", 1, "v", "s", "q", "t", Acknowledgement("drained", 5, None, 0, ("all",), {"outcome": "x"})).value()
)  # fmt: skip


@st.composite
def nearly(draw: st.DrawFn, good: Mapping[str, object]) -> object:
    """A good document, of which a part is missing, another one, or of any form."""
    document = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while True:
            name = draw(st.sampled_from(sorted(place))) if place else "more"
            if isinstance(place.get(name), dict) and place[name] and draw(st.booleans()):
                place = place[name]
                continue
            break
        if draw(st.booleans()):
            place[name] = draw(ANY)
        else:
            place.pop(name, None)
            place[draw(ODD_TEXT)] = draw(ANY)
    return document


def written(document: object) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


RAW = (
    st.binary(max_size=60)
    | ANY.map(written)
    | st.sampled_from([b"[" * 50_000, b"1" * 5000, b'"\xff"', b"\xef\xbb\xbftrue"])
)
VALUES = RAW | nearly(GOOD).map(written)
SWITCHES = RAW | nearly({"enabled": True, "reason": "r", "by": "b", "until": "u"}).map(written)


def shown(text: str) -> None:
    assert text.isprintable()
    text.encode()  # no half of a surrogate pair, which no stream takes


@given(SWITCHES | st.none())
def test_a_switch_is_understood_or_refused(value: bytes | None) -> None:
    try:
        switch = parse_switch(value)
    except ValueError as error:
        shown(str(error)[:400])
    else:
        for text in (switch.reason, switch.by, switch.until):
            shown(text or "")
        try:
            Order(False, by="bob").check(value)
        except NotYours as whose:
            shown(str(whose))
            assert switch.by != "bob"
            Order(False, by=switch.by).check(value)  # whose it is may end it, whatever his name is made of


@given(ODD_TEXT.filter(bool))
def test_whoever_wrote_his_name_may_end_it(name: str) -> None:
    held = Order(True, by=name[:500]).value(None)
    Order(False, by=name[:500]).check(held)


@given(VALUES)
def test_a_registration_is_understood_or_unreadable(value: bytes) -> None:
    seen = entry("a", value, 7)
    row = fleet_table.row(seen)
    json.loads(json.dumps(row, allow_nan=False))
    lines = fleet_table.table([seen], notes={"a": "not yet"})
    for line in lines:
        shown(line)
    wait = Wait(Request(True, 5))
    wait.all({"a": seen})
    standing = wait.standing()
    json.dumps(fleet_table.end(standing, wait.request, code=0, result="done", elapsed=1.0), allow_nan=False)
    fleet_table.outcome(standing, wait.request, elapsed=1.0)
    fleet_table.fleet(Fleet(value, 5, None, {}, (seen,), 9))
    said = answer(wait.request, seen)
    if said is Answer.DONE:
        assert seen.held is not None
        assert seen.held.acknowledgement.revision == 5
        assert type(seen.held.acknowledgement.revision) is int


@given(
    st.dictionaries(st.sampled_from(["reason", "by", "for", "instance", "force"]) | ODD_TEXT, ANY, max_size=5),
    st.booleans(),
)
def test_an_order_is_read_or_refused(document: dict[str, object], on: bool) -> None:
    try:
        order = read_order(document, on=on)
    except ValueError:
        pass
    else:
        value = order.value("2026-01-01T00:00:00Z")
        if order.on:
            assert parse_switch(value).on
        assert order.key("/m").isascii()


@settings(max_examples=50)
@given(
    st.binary(max_size=80)
    | nearly(
        {"pid": os.getpid(), "etcd_endpoints": "h:1", "maintenance_key": "/m", "http_url": "http://h", "sqs_url": "u",
         "queue_url": "q", "birth": "1"}
    ).map(written)
)  # fmt: skip
def test_the_announcement_of_a_stack_is_believed_or_passed_over(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as home:
        environ = {"XDG_RUNTIME_DIR": home}
        with announced(etcd_endpoints="h:1", maintenance_key="/m", http_url="http://h", environ=environ):
            (real,) = Path(home, "svc").glob("dev-*.json")
            birth = json.loads(real.read_text())["birth"]
            real.write_bytes(content.replace(b'"birth": "1"', json.dumps({"birth": birth})[1:-1].encode()))
            found = find_announced(environ)
            if found is not None:
                for text in (*found.environ().values(), *found.queue_environ().values(), found.http_url):
                    shown(text)


def test_what_it_kept_is_the_same() -> None:
    assert parse_switch(b' {"enabled": true, "reason": "disks", "by": "ann"} ') == Switch(True, "disks", None, "ann")
    assert entry("a", json.dumps(GOOD).encode(), 1).held is not None
    assert Announced(1, "a", "b", "c").environ() == {"ETCD_ENDPOINTS": "a", "MAINTENANCE_KEY": "b"}
