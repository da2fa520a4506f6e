"""What an operator may ask, to the letter: the bounds of each field, and what is said when it cannot be."""

import re

import pytest

from svc.maintenance.orders import LONGEST, NoFleet, NotYours, Order, OutOfReach, read_order

KNOWN = "reason, by, for, instance, force, quiet"
FOR = '"for" must be a number of seconds or a duration such as "30m", from 1s to 720h'
INSTANCE = '"instance" must be the name of an instance; GET /fleet names them'


@pytest.mark.parametrize(
    ("document", "on", "said"),
    [
        ({"x": 1}, True, f"unknown field 'x'; known are {KNOWN}"),
        ({"z": 1, "a" * 150: 1}, True, f"unknown field '{'a' * 100}'; known are {KNOWN}"),
        ({"for": 1}, False, "unknown field 'for'; known are by, instance, force"),
        ({"force": None}, True, '"force" must be true or false'),
        ({"quiet": "true"}, True, '"quiet" must be true or false'),
        ({"reason": ""}, True, '"reason" must be a text of 1 to 500 characters'),
        ({"by": "x" * 501}, False, '"by" must be a text of 1 to 500 characters'),
        ({"instance": 5}, True, '"instance" must be a text of 1 to 500 characters'),
        ({"instance": "a b"}, True, INSTANCE),
        ({"instance": "x" * 111}, True, INSTANCE),
        ({"for": 0.99}, True, FOR),
        ({"for": LONGEST + 1}, True, FOR),
        ({"for": "721h"}, True, FOR),
        ({"for": "often"}, True, FOR),
        ({"for": True}, True, FOR),
        ({"for": []}, True, FOR),
    ],
)
def test_what_is_no_order(document: dict[str, object], on: bool, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        read_order(document, on=on)


def test_an_order_may_say_so_much() -> None:
    text, name = "x" * 500, "a-B_9." + "x" * 104
    said = {"reason": text, "by": text, "for": LONGEST, "instance": name, "force": True, "quiet": True}
    assert read_order(said, on=True) == Order(True, text, text, LONGEST, name, True, True)
    lasting = read_order({"for": 1}, on=True).seconds
    assert (lasting, type(lasting)) == (1.0, float)
    assert read_order({"for": "720h"}, on=True).seconds == LONGEST == 2_592_000
    for on in (True, False):
        assert read_order({}, on=on) == Order(on, None, None, None, None, False, False)


@pytest.mark.parametrize(
    ("held", "by", "said"),
    [
        (b'{"enabled": true, "by": "ann"}', None, "maintenance is on by ann"),
        (b'{"enabled": true, "by": "ann"}', "bob", "maintenance is on by ann, and this is bob"),
        (
            b'{"enabled": true, "by": "ann", "reason": "disks", "until": "ten"}',
            "bob",
            "maintenance is on by ann (disks), until ten, and this is bob",
        ),
    ],
)
def test_whose_it_is_is_said(held: bytes, by: str | None, said: str) -> None:
    with pytest.raises(NotYours, match=f"^{re.escape(said)}$"):
        Order(True, by=by).check(held)
    Order(True, by=by, force=True).check(held)


def test_which_key_it_concerns() -> None:
    assert Order(True).key("/m") == "/m"
    assert Order(True, instance="a").key("/m") == "/m/only/a"


def test_a_name_that_cannot_be_printed_is_its_own() -> None:
    Order(False, by="a\x1b").check(Order(True, by="a\x1b").value(None))


async def test_without_a_fleet_there_is_nothing_to_ask() -> None:
    fleet = NoFleet()
    for ask in (fleet.look, lambda: fleet.ask(Order(True))):
        with pytest.raises(OutOfReach, match=r"^this service belongs to no fleet$") as raised:
            await ask()
        assert not raised.value.timed_out
    assert OutOfReach("late", timed_out=True).timed_out
