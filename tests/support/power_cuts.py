"""Cuts the power of a disk at random moments while something writes to it, and looks at what a restart would find.

usage: power_cuts.py WRITER FOLDER CUTS SEED        WRITER: outbox, journal

A file system lives in an image (ext4 on a loop device). A child writes and tells each number only after the call that makes it
durable has returned. At a random moment the child is stopped, the image is copied as it is, and the child goes on: what had not
gone from the page cache to the disk is not in the copy, as after a power cut. The copy is mounted (the file system recovers by its
own journal), opened as a restart opens it, and every number that had been told has to be there once. Needs root and loop devices.
What this does not show is a drive that forgets what it had confirmed.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

from wattmesh_a2a.telemetry import ColumnBatch, decode
from wattmesh_cloud.market.journal import Journal
from wattmesh_edge.outbox import Outbox

COLUMNS = ("meter.active_power_w",)
ENDLESS = 1_000_000


def write_outbox(folder: Path, told: int) -> None:
    outbox = Outbox(folder / "outbox", "home-1", "s1", COLUMNS, batch_rows=4)
    for number in range(ENDLESS):
        outbox.add_row(10**18 + number * 10**9, [array("d", [float(number)])], [bytes([0])])
        if number % 4 == 3:
            outbox.seal()
            os.write(told, b"%d\n" % number)


def read_outbox(folder: Path) -> list[int]:
    outbox = Outbox(folder / "outbox", "home-1", "s2", COLUMNS, batch_rows=4)
    frames = [decode(one.frame) for one in outbox.pending(ENDLESS, newest_first=False)]
    outbox.close()
    return [int(value) for one in frames if isinstance(one, ColumnBatch) for value in one.values[0]]


def write_journal(folder: Path, told: int) -> None:
    journal = Journal(folder / "area.journal")
    for number in range(ENDLESS):
        journal.append_now({"number": number})
        os.write(told, b"%d\n" % number)


def read_journal(folder: Path) -> list[int]:
    journal = Journal(folder / "area.journal")
    found = [entry["number"] for entry in journal.entries()]
    journal.close()
    return found


WAYS = {"outbox": (write_outbox, read_outbox), "journal": (write_journal, read_journal)}


def run(*command: object) -> None:
    subprocess.run([str(one) for one in command], check=True, capture_output=True)


class Teller:
    """The child's end of the pipe: the last number that it told."""

    def __init__(self, file: int) -> None:
        self.file, self.last, self.rest = file, -1, b""

    def listen(self) -> None:
        while select.select([self.file], [], [], 0)[0]:
            *lines, self.rest = (self.rest + os.read(self.file, 65_536)).split(b"\n")
            self.last = int(lines[-1]) if lines else self.last


def look(copy: Path, place: Path, read: object, told: int) -> dict[str, int]:
    run("mount", "-o", "loop", copy, place)
    try:
        found = read(place)  # type: ignore[operator]
    finally:
        run("umount", place)
    wanted = set(range(told + 1))
    return {"lost": len(wanted - set(found)), "doubled": len(found) - len(set(found)), "found": len(found)}


def main() -> None:
    way, folder, cuts, rng = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
    write, read = WAYS[way]
    image, copy, live, place = folder / "disk.img", folder / "cut.img", folder / "live", folder / "after"
    live.mkdir()
    place.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 48 * 2**20)
    run("mkfs.ext4", "-q", "-F", image)
    run("mount", "-o", "loop", image, live)
    total = {"cuts": 0, "lost": 0, "doubled": 0, "told": 0}
    child = 0
    try:
        inner, outer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(inner)
            write(live, outer)
            os._exit(0)
        os.close(outer)
        teller = Teller(inner)
        while teller.last < 0:
            time.sleep(0.01)
            teller.listen()
        for _ in range(cuts):
            time.sleep(rng.uniform(0.0, 0.06))
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
            teller.listen()
            run("cp", "--sparse=always", image, copy)
            os.kill(child, signal.SIGCONT)
            found = look(copy, place, read, teller.last)
            total = {
                "cuts": total["cuts"] + 1,
                "lost": total["lost"] + found["lost"],
                "doubled": total["doubled"] + found["doubled"],
                "told": teller.last,
            }
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        run("umount", live)
    print(json.dumps(total))


if __name__ == "__main__":
    main()
