"""Devices are made safe at the start and left safe at the end, also those that do not answer just then."""

import asyncio
import logging

import pytest
from virtual_time import VirtualLoop
from wattmesh_a2a.control import Applied, Failed, Rejected
from wattmesh_drivers.driver import DriverState
from wattmesh_edge.devices import LEAVE_WITHIN_S, leave


class Away:
    """A device that is backing off and answers again after a while of the loop's time."""

    def __init__(self, back_after_s, outcome=None):
        self.back_after_s = back_after_s
        self.outcome = outcome or Failed(reason="backing off", retryable=True)
        self.state, self.told, self.ended = DriverState.BACKING_OFF, [], []

    async def apply_safe_state(self):
        now = asyncio.get_running_loop().time()
        if now < self.back_after_s:
            self.told.append((now, "not there"))
            return [self.outcome]
        self.state = DriverState.READY
        self.told.append((now, "safe"))
        return [Applied(value=0.0)]

    async def release(self):
        self.ended.append("released")
        return [Applied(value=1.0)]

    async def close(self):
        self.ended.append("closed")


def left(device):
    """The device after it was left, and how long that took, in the loop's own time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:

        async def go():
            await leave("battery", device)
            return asyncio.get_running_loop().time()

        return runner.run(go())


def test_a_device_that_backs_off_is_tried_until_it_is_safe():
    device = Away(4.2)
    took = left(device)
    assert device.told[-1][1] == "safe"
    assert device.ended == ["released", "closed"]
    assert 4.2 <= took < 5.0
    assert len(device.told) == 10, "every half second, not in a hurry"


def test_one_that_never_answers_is_given_up_in_time_and_said(caplog):
    device = Away(1e9)
    with caplog.at_level(logging.ERROR):
        took = left(device)
    assert took == pytest.approx(LEAVE_WITHIN_S)
    assert device.ended == ["closed"], "never handed over while it may still hold a setpoint"
    assert "does not answer" in caplog.text


def test_one_that_refuses_is_not_asked_again(caplog):
    device = Away(1e9, Rejected(reason="no such setting"))
    assert left(device) == 0
    assert len(device.told) == 1
    assert "could not be left in its safe state" in caplog.text


def test_a_driver_with_a_mistake_of_its_own_is_closed_all_the_same(caplog):
    device = Away(0.0)

    async def broken():
        raise RuntimeError("nobody thought of this")

    device.apply_safe_state = broken
    left(device)
    assert device.ended == ["closed"]
    assert "nobody thought of this" in caplog.text
