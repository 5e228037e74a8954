"""Cards say who is there; what is strange in one harms nobody."""

import asyncio
import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from wattmesh_a2a import __version__
from wattmesh_a2a.cards import AgentRegistry, parse_card
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.messages import Acknowledged, CommitmentQuery

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "producer")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(["name", "version", "session", "capabilities", "skills"])


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_thousand_agents_are_known_with_what_they_take_and_whether_they_are_there(ends):
    world, registry = ends(), []
    await world.join(CLOUD, prepare=lambda delivery: registry.append(AgentRegistry(delivery, world.clock)))

    async def handle(_):
        return Acknowledged()

    transports = []
    for number in range(1000):
        address = Address("o", f"site-{number}", "gateway")
        one, transport = await world.join(
            address, prepare=lambda delivery: delivery.on_request(CommitmentQuery, handle)
        )
        await one.announce({"extra": number})
        transports.append(transport)
    await turns()
    known = registry[0]
    assert len(known.agents(online=True, takes="wattmesh.market.commitment.query.v1")) == 1000
    assert known.agents(takes="wattmesh.strategy.v1") == []
    transports[7].crash()
    await turns()
    gone = known.get(Address("o", "site-7", "gateway"))
    assert gone is not None
    assert not gone.online
    assert len(known.agents(online=True)) == 999
    assert gone.version


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_a_strange_card_is_read_without_an_error(card):
    found = parse_card(SITE, card, 5)
    assert found.address == SITE
    assert len(found.name) <= 200


def test_the_version_is_the_projects():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__
