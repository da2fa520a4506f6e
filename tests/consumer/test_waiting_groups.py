"""FIFO groups that wait for a message that has failed: decisions alone."""

from svc.consumer.waiting_groups import SWEEP, WaitingGroups


def test_a_receive_that_may_meet_the_failed_message_is_told() -> None:
    held = WaitingGroups(patience=30)
    assert not held.meets(0, 100)
    held.failed("g", 50, now=0)
    assert not held.meets(0, 49)
    assert held.meets(0, 50)
    assert held.meets(79, 80)  # it may come to us still
    assert not held.meets(80, 100)  # by now another instance has it
    assert held.visible_at("g") == 50


def test_while_it_is_worked_on_again_the_group_waits_on() -> None:
    held = WaitingGroups(patience=30)
    held.failed("g", 50, now=0)
    held.landed("g")
    assert held.meets(1000, 1020)
    held.failed("g", 1100, now=1000)
    assert not held.meets(1000, 1020)
    held.landed("g")
    held.finished("g", landed_at=1100)
    assert not held.meets(1100, 1200)
    assert held.visible_at("g") is None


def test_what_stood_before_it_and_is_confirmed_later_changes_nothing() -> None:
    held = WaitingGroups(patience=30)
    held.failed("g", 50, now=10)
    for landed_at in (9, 10):
        held.finished("g", landed_at)
        assert held.visible_at("g") == 50
    held.finished("g", landed_at=10.1)
    assert held.visible_at("g") is None
    held.finished("g", landed_at=11)


def test_given_back_or_lost_it_is_waited_for_a_while() -> None:
    held = WaitingGroups(patience=30)
    held.failed("g", 50, now=0)
    held.given_back("g", 10)  # one behind it
    assert held.meets(60, 80)
    held.landed("g")
    held.given_back("g", 100)
    assert held.meets(129, 140)
    assert not held.meets(130, 140)


def test_groups_that_are_not_waited_for_any_more_are_forgotten() -> None:
    held = WaitingGroups(patience=30)
    for number in range(SWEEP):
        held.failed(str(number), 10, now=0)
    held.failed("g", 110, now=100)
    assert len(held._groups) == 1
    held.landed("h")
    held.given_back("h", 100)
    held.finished("h", landed_at=100)
    assert len(held._groups) == 1


def test_what_was_slept_through_is_waited_for_no_more() -> None:
    held = WaitingGroups(patience=30)
    held.failed("g", 50, now=0)
    held.slept(20)
    assert held.visible_at("g") == 30
    assert not held.meets(0, 29)
    assert held.meets(59, 60)
    assert not held.meets(60, 100)
