"""20,000 random schedules of loss, repetition, disorder, partitions and crashes at any step, in virtual time."""

import os

import pytest
from message_chaos import run

FIRST = int(os.environ.get("WATTMESH_CHAOS_FIRST", "0"))
CHUNKS, SCHEDULES = 20, 1000


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_effects_at_most_once_in_time_and_every_sender_learns_the_outcome(chunk):
    totals = run(FIRST + chunk * SCHEDULES, SCHEDULES)
    assert totals["commands"] > 0.9 * SCHEDULES
    assert 0.2 < totals["effects"] / totals["commands"] < 0.95  # the schedules are neither harmless nor hopeless
    assert totals["batches"] > 0.3 * SCHEDULES
