"""A standby goes on where the writer was, and two writers never both acknowledge."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.clock import NS_PER_S, ManualClock, SystemClock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, MARKET_AGENT, Address
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.market import Order, OrderStatus, Side
from wattmesh_a2a.messages import OrderPlace
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_cloud.config import load_cloud
from wattmesh_cloud.market import journal as journal_module
from wattmesh_cloud.market.journal import Journal, finish_take_over, has_writer, take_over
from wattmesh_cloud.market.standby import Following, follow

WATTMESH = str(Path(sys.executable).with_name("wattmesh"))
CLOUD = """version: 1
org: demo
state: state
broker: {broker}
keys: keys
http: {{port: {port}}}
planning: {{enabled: false}}
market:
  area: north
  mechanism: continuous
  tariff: {{feed_in_price: 0.05, default_price: 0.30}}
  participants:
    - {{id: ann, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}}
    - {{id: bob, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}}
"""


def entry(number):
    return {"what": "halt", "reason": str(number)}


def reasons(path):
    journal = Journal(path)
    found = [one["reason"] for one in journal.entries()]
    journal.close()
    return found


# -- fencing


async def test_a_writer_that_hangs_is_fenced_and_what_it_acknowledged_is_kept(tmp_path):
    path = tmp_path / "j.journal"
    old = Journal(path)
    for number in range(3):
        await old.append(entry(number))
    assert has_writer(path)
    take_over(path)
    assert not has_writer(path), "the name is another file's now"
    new = Journal(path)
    await new.append(entry(3))
    with pytest.raises(UnavailableError, match="another writer has taken over"):
        await old.append(entry(99))
    with pytest.raises(UnavailableError, match="another writer has taken over"):
        await old.append(entry(98))
    await new.append(entry(4))
    new.close()
    old.close()
    assert reasons(path) == ["0", "1", "2", "3", "4"]
    with pytest.raises(ConfigurationError, match="there is no such journal"):
        take_over(tmp_path / "none.journal")


def test_what_is_acknowledged_while_the_name_changes_is_brought_over(tmp_path, monkeypatch):
    path = tmp_path / "j.journal"
    old = Journal(path)
    old.append_now(entry(0))
    real = os.link

    def link(*names):  # after the copy was made, before the name changes
        old.append_now(entry(1))
        real(*names)

    monkeypatch.setattr(journal_module.os, "link", link)
    take_over(path)
    with pytest.raises(OSError, match="another writer has taken over"):
        old.append_now(entry(2))
    old.close()
    assert reasons(path) == ["0", "1"]


@settings(max_examples=40, deadline=None)
@given(before=st.integers(0, 3), during=st.integers(0, 3), dies=st.sampled_from(["link", "replace", "finish", None]))
def test_a_take_over_that_dies_on_the_way_loses_nothing_acknowledged(tmp_path_factory, before, during, dies):
    class Died(Exception):
        pass

    path = tmp_path_factory.mktemp("j") / "j.journal"
    old = Journal(path)
    for number in range(before):
        old.append_now(entry(number))
    acknowledged = before
    with pytest.MonkeyPatch.context() as patch:
        real_link, real_finish, real_replace = os.link, journal_module.finish_take_over, Path.replace
        calls = []

        def link(*names):
            nonlocal acknowledged
            for _ in range(during):
                old.append_now(entry(acknowledged))
                acknowledged += 1
            if dies == "link":
                raise Died
            real_link(*names)

        def finish(one):
            calls.append(one)
            if len(calls) == 2 and dies == "finish":
                raise Died
            real_finish(one)

        def replace(draft, target):
            if dies == "replace":
                raise Died
            return real_replace(draft, target)

        patch.setattr(journal_module.os, "link", link)
        patch.setattr(journal_module, "finish_take_over", finish)
        patch.setattr(journal_module.Path, "replace", replace)
        if dies is None:
            take_over(path)
        else:
            with pytest.raises(Died):
                take_over(path)
    fenced = dies in {"finish", None}
    if fenced:
        with pytest.raises(OSError, match="another writer has taken over"):
            old.append_now(entry(99))
    else:
        old.append_now(entry(acknowledged))
        acknowledged += 1
    old.close()
    got = reasons(path)
    assert got[:acknowledged] == [str(number) for number in range(acknowledged)]
    assert got[acknowledged:] in ([], ["99"] if dies == "finish" else []), "at most what nobody was told of"
    finish_take_over(path)
    assert reasons(path) == got
    take_over(path)
    assert reasons(path) == got


def test_only_one_takes_over(tmp_path, monkeypatch):
    path = tmp_path / "j.journal"
    Journal(path).close()
    real = os.link

    def link(*names):
        with pytest.raises(ConfigurationError, match="another process takes it over"):
            take_over(path)
        real(*names)

    monkeypatch.setattr(journal_module.os, "link", link)
    take_over(path)


# -- following


async def test_it_goes_on_only_after_the_writer_was_gone_for_a_while(tmp_path):
    file = tmp_path / "cloud.yaml"
    file.write_text(CLOUD.format(broker="mqtt://127.0.0.1:1883", port=8080))
    config, clock, stop, lines = load_cloud(file), ManualClock(0), asyncio.Event(), []
    following = Following(config)
    assert not following.alone(), "no journal yet: nothing to go on with"
    path = config.state / "market-north.journal"
    writer = Journal(path)
    task = asyncio.create_task(follow(following, clock, stop, lines.append, take_over_after_s=5.0))
    await clock.advance(60)
    assert not task.done()
    writer.append_now({"what": "rules", "config": config.model.market.model_dump(mode="json", by_alias=True)})
    writer.close()
    await clock.advance(4)
    writer = Journal(path)  # only restarted
    await clock.advance(10)
    assert not task.done()
    assert json.loads(lines[-1])["north"]["entries"] == 1
    writer.close()
    await clock.advance(4.8)
    assert not task.done()
    await clock.advance(1)
    assert await task is True
    task = asyncio.create_task(follow(following, clock, stop, lines.append, take_over_after_s=None))
    await clock.advance(60)
    assert not task.done(), "without --take-over it only follows"
    stop.set()
    await clock.advance(1)
    assert await task is False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """wattmesh commands, ended with the test by their ids."""

    def __init__(self):
        self.running = []

    def start(self, *command):
        process = subprocess.Popen(
            [WATTMESH, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.running.append(process)
        return process

    def run(self, *command):
        return subprocess.run(
            [WATTMESH, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout


@pytest.fixture
def processes():
    made = Processes()
    yield made
    for process in made.running:
        process.kill()
        process.wait()
        process.stdout.close()


async def until(file, process, limit_s=60.0):
    async with asyncio.timeout(limit_s):
        while not file.exists():
            assert process.poll() is None, process.stdout.read().decode()
            await asyncio.sleep(0.05)


@pytest.mark.system
@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_a_second_process_takes_the_killed_clouds_place(tmp_path, processes, how):
    """Real processes and a broker: an order acknowledged by the first is known to the second, which trades against it."""
    (tmp_path / "keys").mkdir()
    keys = {name: secrets.token_bytes(32) for name in ("ann", "bob")}
    for name, key in keys.items():
        (tmp_path / "keys" / f"{name}.key").write_text(key.hex())
        (tmp_path / "keys" / f"{name}.key").chmod(0o600)
    clock, market = SystemClock(), Address("demo", CLOUD_UNIT, MARKET_AGENT)
    slot = clock.utc_ns() // (900 * NS_PER_S) * 900 * NS_PER_S + 4 * 900 * NS_PER_S
    async with provision_broker(tmp_path / "broker", free_port()) as broker:
        file = tmp_path / "cloud.yaml"
        file.write_text(CLOUD.format(broker=broker.url, port=free_port()))
        first = processes.start("cloud", "run", file, "--ready-file", tmp_path / "first")
        await until(tmp_path / "first", first)
        agents = {}
        for name, key in keys.items():
            address = Address("demo", name, "gateway")
            agents[name] = Delivery(MqttTransport(broker.url, str(address)), address, clock, keys=KeyRing({name: key}))
            await agents[name].start()

        async def place(who, side, name):
            order = Order(
                client_order_id=name, participant_id=who, area_id="north", slot_start_ns=slot, side=side,
                quantity_wh=100, price_ticks=2000,
            )  # fmt: skip
            message = OrderPlace(participant_id=who, area_id="north", orders=(order,))
            answer = await agents[who].request(market, message, expires_ns=clock.utc_ns() + 60 * NS_PER_S)
            return answer.results[0]

        assert (await place("ann", Side.BUY, "a1")).status is OrderStatus.ACCEPTED
        second = processes.start(
            "market", "follow", file, "--take-over", "--after", "0.5", "--ready-file", tmp_path / "second"
        )
        if how == "killed":
            first.kill()
        else:
            first.send_signal(signal.SIGSTOP)  # holds its lock and its port, and answers nobody
            file.write_text(CLOUD.format(broker=broker.url, port=free_port()))
            out = json.loads(processes.run("market", "promote", file).splitlines()[0])
            assert out["north"]["entries"] >= 2
        await until(tmp_path / "second", second)
        again = await place("ann", Side.BUY, "a1")
        assert (again.status, again.open_wh) == (OrderStatus.ACCEPTED, 100), "the same order, not a second one"
        sold = await place("bob", Side.SELL, "b1")
        assert (sold.status, sold.trades[0].buy_order_id) == (OrderStatus.FILLED, "a1")
        if how == "hung":
            first.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(first.wait, 30) != 0, "it ends by itself"
            assert b"another writer has taken over" in first.stdout.read()
            later = await place("bob", Side.SELL, "b2")
            assert (later.status, later.reason) == (OrderStatus.ACCEPTED, None)
        for agent in agents.values():
            await agent.stop()
        second.send_signal(signal.SIGTERM)
        await asyncio.to_thread(second.wait, 30)
        verified = processes.run("settle", "verify", tmp_path / "state" / "market-north.journal")
        assert "right" in verified
        states = json.loads(processes.run("market", "follow", file, "--once"))
        assert states["north"]["trades"] == 1
        assert not states["north"]["writer"]
        assert f"state {states['north']['state_hash']}" in verified
