"""Kills a process that fills an outbox, at random moments and many times, and counts what came of it: see test_outbox.

usage: outbox_killer.py FOLDER ROUNDS SEED

A child adds rows and records and tells each number only after the outbox has returned: that is the acknowledgement. It is
killed (SIGKILL) after a random time. Then the outbox is opened anew, as a restarted gateway does, some of its batches are taken
by a cloud that remembers stream and sequence, and some of these are acknowledged. The process is forked, so that 200 rounds
take seconds.
"""

import json
import os
import random
import signal
import sys
import time
from array import array
from pathlib import Path

from wattmesh_a2a.telemetry import ColumnBatch, decode
from wattmesh_edge.outbox import Outbox

COLUMNS = ("meter.active_power_w", "battery.soc_percent")
BASE_NS = 10**18


def opened(folder: Path, session: str) -> Outbox:
    return Outbox(folder, "home-1", session, COLUMNS, batch_rows=4)


def fill(folder: Path, session: str, first: int, told: int) -> None:
    """In the child: add until killed."""
    outbox = opened(folder, session)
    for number in range(first, first + 1_000_000):
        outbox.add_row(BASE_NS + number, [array("d", [float(number)]), array("d", [50.0])], [bytes([0]), bytes([0])])
        outbox.add_record(b'{"type":"x","data":%d}' % number)
        os.write(told, b"%d\n" % number)


class Cloud:
    """Keeps what it is sent once, as the ingest does: by stream and sequence."""

    def __init__(self) -> None:
        self.batches: dict[tuple[str, int], bytes] = {}
        self.differ = 0

    def take(self, outbox: Outbox, rng: random.Random) -> None:
        for pending in outbox.pending(rng.randrange(60)):
            key = pending.stream, pending.sequence
            if self.batches.setdefault(key, pending.frame) != pending.frame:
                self.differ += 1
            if rng.random() < 0.7:
                outbox.acknowledge(pending.stream, [pending.sequence])

    def numbers(self) -> tuple[list[int], list[int]]:
        rows: list[int] = []
        records: list[int] = []
        for frame in self.batches.values():
            batch = decode(frame)
            if isinstance(batch, ColumnBatch):
                rows += [int(value) for value in batch.values[0]]
            else:
                records += [json.loads(line)["data"] for line in batch.lines]
        return rows, records


def main(folder: Path, rounds: int, seed: int) -> dict[str, object]:
    rng, cloud, acknowledged, first = random.Random(seed), Cloud(), set(), 0
    worst_open_s = 0.0
    for number in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                fill(folder, f"s{number}", first, writer)
            finally:
                os._exit(3)
        os.close(writer)
        time.sleep(rng.uniform(0.001, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        with os.fdopen(reader, "rb") as told:
            acknowledged |= {int(line) for line in told.read().split(b"\n")[:-1]}
        first = max(acknowledged | {first}) + 2  # the one that was under way may be there or not: it never comes again
        began = time.monotonic()
        outbox = opened(folder, f"r{number}")
        worst_open_s = max(worst_open_s, time.monotonic() - began)
        cloud.take(outbox, rng)
        outbox.close()
    outbox = opened(folder, "last")
    while pending := outbox.pending(100):
        for one in pending:
            if cloud.batches.setdefault((one.stream, one.sequence), one.frame) != one.frame:
                cloud.differ += 1
            outbox.acknowledge(one.stream, [one.sequence])
    rows, records = cloud.numbers()
    return {
        "kills": rounds,
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - set(rows)) + len(acknowledged - set(records)),
        "doubled": len(rows) - len(set(rows)) + len(records) - len(set(records)),
        "differ": cloud.differ,
        "worst_open_s": worst_open_s,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
