"""kill -9 of mosquitto, of the sender and of the receiver, in any order: effects once, outcomes known."""

import asyncio
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from wattmesh_a2a.broker import provision_broker

WORKER = Path(__file__).parents[1] / "support/message_worker.py"
HAS_MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is not None


def outcomes_in(folder):
    try:
        return sqlite3.connect(folder / "told.sqlite").execute("SELECT COUNT(*) FROM told").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.long)])
async def test_commands_survive_kills_of_everybody(tmp_path, rounds):
    chance = random.Random(rounds)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    async with provision_broker(tmp_path / "broker", port, kind="mosquitto") as broker:

        def start(role):
            return subprocess.Popen([sys.executable, str(WORKER), role, broker.url, str(tmp_path)], env=os.environ)

        ends = {role: start(role) for role in ("receive", "send")}
        try:
            for _ in range(rounds):
                known = outcomes_in(tmp_path)
                for _ in range(60):  # on a machine that is busy a round takes longer; each should see something done
                    await asyncio.sleep(0.1)
                    if outcomes_in(tmp_path) > known:
                        break
                await asyncio.sleep(chance.uniform(0, 0.3))
                victim = chance.choice(["receive", "send", "broker"])
                if victim == "broker":
                    broker.kill()
                    await asyncio.sleep(chance.uniform(0, 0.3))
                    broker.start()
                else:
                    ends[victim].kill()
                    ends[victim].wait()
                    await asyncio.sleep(chance.uniform(0, 0.3))
                    ends[victim] = start(victim)
            (tmp_path / "enough").touch()
            async with asyncio.timeout(120):
                while not (tmp_path / "done").exists():
                    assert all(end.poll() is None for end in ends.values())
                    await asyncio.sleep(0.1)
        finally:
            for end in ends.values():
                end.kill()
                end.wait()
    effects = sqlite3.connect(tmp_path / "answers.sqlite").execute("SELECT id, late FROM effects").fetchall()
    told = sqlite3.connect(tmp_path / "told.sqlite").execute("SELECT id, outcome FROM told").fetchall()
    assert len(effects) > rounds // 2
    assert len({name for name, _ in effects}) == len(effects), "a command took effect twice"
    assert not [name for name, late in effects if late]
    outcomes = {}
    for name, outcome in told:
        assert outcomes.setdefault(name, outcome) == outcome, "two outcomes of one command"
    acknowledged = {name for name, outcome in outcomes.items() if outcome.startswith("Acknowledged")}
    assert acknowledged == {name for name, _ in effects}
    assert all("'expired'" in outcome for name, outcome in outcomes.items() if name not in acknowledged)
