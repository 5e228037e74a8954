"""Simulated time: everybody finishes a step before the next begins, and the dead are not waited for."""

import asyncio
import json

import pytest
from wattmesh_a2a.clock import SteppedClock
from wattmesh_a2a.errors import UnavailableError
from wattmesh_simulators.timeserver import TimeServer

S = 10**9


@pytest.fixture
async def server():
    made = TimeServer(start_ns=1000 * S, step_ns=10 * S, speed=None, patience_s=0.2)
    await made.serve()
    yield made
    await made.close()


async def follow(clock, seen, name, pause=None):
    with clock.runner():
        while True:
            await clock.sleep_until_ns(clock.monotonic_ns() + 10 * S)
            if pause is not None:
                await pause.wait()
            seen.append((name, clock.utc_ns() // S))


async def test_all_see_every_step_and_the_hardware_sees_it_first(server):
    seen = []
    async with (
        SteppedClock.connected("a", "127.0.0.1", server.port) as a,
        SteppedClock.connected("hardware", "127.0.0.1", server.port) as hardware,
    ):
        tasks = [asyncio.create_task(follow(a, seen, "a")), asyncio.create_task(follow(hardware, seen, "hardware"))]
        await server.wait_joined({"a", "hardware"}, 1.0)
        await asyncio.sleep(0)
        await server.run(1050 * S)
        for task in tasks:
            task.cancel()
    assert seen == [(name, second) for second in range(1010, 1051, 10) for name in ("hardware", "a")]


async def test_time_waits_for_the_slowest_and_not_for_the_dead(server):
    seen, gate = [], asyncio.Event()
    async with SteppedClock.connected("slow", "127.0.0.1", server.port) as slow:
        task = asyncio.create_task(follow(slow, seen, "slow", gate))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b'{"name": "mortal"}\n')
        assert json.loads(await reader.readline()) == {"now_ns": 1000 * S}
        await server.wait_joined({"slow", "mortal"}, 1.0)
        run = asyncio.create_task(server.run(1030 * S))
        assert json.loads(await reader.readline()) == {"now_ns": 1010 * S}
        assert server.now_ns == 1010 * S, "neither has finished"
        writer.close()  # killed in mid-step
        gate.set()
        await asyncio.wait_for(run, 2.0)
        task.cancel()
    assert [second for _, second in seen] == [1010, 1020, 1030]


async def test_who_hangs_is_left_behind_until_it_answers(server):
    gate = asyncio.Event()
    async with SteppedClock.connected("hung", "127.0.0.1", server.port) as hung:
        task = asyncio.create_task(follow(hung, [], "hung", gate))
        await server.wait_joined({"hung"}, 1.0)
        await asyncio.wait_for(server.run(1050 * S), 3.0)
        assert server.now_ns == 1050 * S
        task.cancel()


async def test_who_comes_back_gets_the_present_time(server):
    await server.run(1100 * S)
    async with SteppedClock.connected("late", "127.0.0.1", server.port) as late:
        assert late.utc_ns() == 1100 * S


async def test_who_does_not_join_is_named(server):
    with pytest.raises(UnavailableError, match="home-9"):
        await server.wait_joined({"home-9"}, 0.05)


async def test_garbage_does_no_harm(server):
    for garbage in (b"\xff\x00\n", b"[]\n", b'{"nam": 1}\n', b'{"name": "x"}\nnonsense\n'):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(garbage)
        await writer.drain()
        writer.close()
    await server.run(1020 * S)
    assert server.now_ns == 1020 * S


async def test_time_stands_still_while_the_hardware_is_restarted():
    made = TimeServer(start_ns=0, step_ns=10 * S, speed=None, expected={"hardware"}, patience_s=5.0)
    await made.serve()
    run = asyncio.create_task(made.run(20 * S))
    await asyncio.sleep(0)
    assert made.now_ns == 0
    async with SteppedClock.connected("hardware", "127.0.0.1", made.port):
        await asyncio.wait_for(run, 3.0)
    assert made.now_ns == 20 * S
    await made.close()
