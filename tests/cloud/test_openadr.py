"""OpenADR 3 against a stand-in VTN: its events become ours, reports go back, and whatever it answers breaks nothing."""

import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_in_vtn import StandInVtn
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnauthorisedError, UnavailableError
from wattmesh_cloud.grid.config import GridConfig, OpenAdrConfig
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.openadr.client import VenClient
from wattmesh_cloud.openadr.models import Event, ObjectOperations, Subscription
from wattmesh_cloud.openadr.service import OpenAdrService
from wattmesh_cloud.openadr.translate import plans_of, report_of

SLOT = 900 * NS_PER_S


@pytest.fixture
def vtn():
    return StandInVtn()


def config_of(tmp_path, **changes):
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    base = {"url": "http://127.0.0.1/openadr3", "client_id": "wattmesh", "client_secret": secret, "ven_name": "house"}
    return OpenAdrConfig.model_validate({**base, **changes})


class House:
    """A grid agent with a VEN in front of it."""

    def __init__(self, vtn, store, messenger, clock, folder, forecasts):
        self.clock, self.vtn, self.folder = clock, vtn, folder
        self.paid = []

        async def pay(*what):
            self.paid.append(what)

        self.grid = GridService(
            GridConfig.model_validate({"demand_response": {"enabled": False}}), store, messenger, clock, folder, "demo",
            forecasts=lambda: forecasts, pay=pay,
        )  # fmt: skip
        self.start()

    def start(self, **changes):
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.vtn.app), base_url="http://127.0.0.1")
        config = config_of(self.folder, url="http://127.0.0.1", **changes)
        self.client = VenClient(config, self.clock, http)
        self.ven = OpenAdrService(config, self.client, self.grid, self.clock, self.folder, price=0.30)

    def at(self, hours):
        moment = datetime.fromtimestamp(self.clock.utc_ns() // NS_PER_S, tz=UTC) + timedelta(hours=hours)
        return moment.isoformat().replace("+00:00", "Z")

    def events(self):
        return {one.event.target_w: one for one in self.grid.running.values()}


@pytest.fixture
async def house(vtn, store, messenger, clock, tmp_path, make_forecast, midnight_ns):
    forecasts = {"ann": {"load_wh": make_forecast("ann", "load_wh", midnight_ns, [1000.0] * 192)}}  # 4 kW
    made = House(vtn, store, messenger, clock, tmp_path, forecasts)
    yield made
    await made.client.close()


# -- events


async def test_events_become_ours_with_their_meaning(house, vtn):
    program = vtn.program("peaks")
    units = [{"objectType": "EVENT_PAYLOAD_DESCRIPTOR", "payloadType": "DISPATCH_SETPOINT_RELATIVE", "units": "KW"}]
    vtn.event(
        program, house.at(4), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -2.5, "PRICE": 0.5}, payloadDescriptors=units
    )
    vtn.event(program, house.at(6), "PT2H", {"IMPORT_CAPACITY_LIMIT": 3})
    vtn.event(program, house.at(10), "PT30M", {"SIMPLE": 2})
    vtn.event(program, house.at(12), "PT30M", {"SIMPLE": 0})
    await house.ven.look()
    events = house.events()
    assert set(events) == {-2500, -1000, -800}  # 4 kW expected
    first = events[-2500].event
    assert first.start_ns == house.clock.utc_ns() + 16 * SLOT
    assert first.end_ns - first.start_ns == 4 * SLOT
    assert (first.price_ticks, events[-1000].event.price_ticks) == (5000, 3000)
    assert house.ven.snapshot()["not_followed"] == []
    assert [one["venName"] for one in vtn.objects["vens"].values()] == ["house"]


async def test_the_same_event_is_taken_once_and_a_changed_one_anew(house, vtn):
    program = vtn.program("peaks")
    name = vtn.event(program, house.at(4), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -2})
    await house.ven.look()
    await house.ven.look()
    assert list(house.events()) == [-2000]
    vtn.change(name, intervals=[{"id": 0, "payloads": [{"type": "DISPATCH_SETPOINT_RELATIVE", "values": [-3]}]}])
    await house.ven.look()
    assert [one.event.target_w for one in house.grid.running.values() if one.event.state == "announced"] == [-3000]
    await house.grid.finish()


async def test_a_withdrawn_event_is_cancelled(house, vtn):
    program = vtn.program("peaks")
    name = vtn.event(program, house.at(4), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -2})
    await house.ven.look()
    vtn.delete(name)
    await house.ven.look()
    (running,) = house.grid.running.values() or [None]
    assert running is None or running.event.state == "cancelled"


async def test_only_the_programs_that_are_named_are_followed(house, vtn):
    house.start(programs=("wanted",))
    for name in ("wanted", "other"):
        vtn.event(vtn.program(name), house.at(4), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -2})
    await house.ven.look()
    assert len(house.grid.running) == 1


async def test_intervals_follow_one_another(house, vtn):
    program = vtn.program("peaks")
    intervals = [
        {"id": at, "payloads": [{"type": "DISPATCH_SETPOINT_RELATIVE", "values": [value]}]}
        for at, value in enumerate((-1, -2))
    ]
    vtn.event(program, house.at(4), "PT1H", {}, intervals=intervals)
    await house.ven.look()
    one, two = (house.events()[watts].event for watts in (-1000, -2000))
    assert two.start_ns == one.end_ns


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"intervalPeriod": None}, "neither it nor the event"),
        ({"duration": "PT0S"}, "duration has to be"),
        ({"duration": "P9999Y"}, "has to be"),
        ({"hours": -1}, "it has begun"),
        ({"payload": {"DISPATCH_SETPOINT_RELATIVE": "much"}}, "has no number"),
        ({"payload": {"SIMPLE": 7}}, "level from 0 to 3"),
        ({"units": "KWH"}, "in KW, W or MW"),
    ],
    ids=["when", "instant", "endless", "late", "text", "level", "units"],
)
async def test_what_cannot_be_followed_is_told_and_the_rest_is(house, vtn, change, said):
    program = vtn.program("peaks")
    payload = change.get("payload", {"DISPATCH_SETPOINT_RELATIVE": -2})
    more = {"intervalPeriod": None} if "intervalPeriod" in change else {}
    if "units" in change:
        more["payloadDescriptors"] = [{"payloadType": "DISPATCH_SETPOINT_RELATIVE", "units": change["units"]}]
    vtn.event(program, house.at(change.get("hours", 4)), change.get("duration", "PT1H"), payload, **more)
    vtn.event(program, house.at(8), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -1})
    await house.ven.look()
    assert list(house.events()) == [-1000]
    (text,) = house.ven.snapshot()["not_followed"]
    assert said in text


async def test_a_restart_takes_nothing_twice(house, vtn):
    vtn.event(vtn.program("peaks"), house.at(4), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -2})
    await house.ven.look()
    house.start()
    await house.ven.look()
    assert len(house.grid.running) == 1


# -- reports


async def test_what_was_delivered_is_reported_once(house, vtn):
    name = vtn.event(vtn.program("peaks"), house.at(4), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -2})
    await house.ven.look()
    (running,) = house.grid.running.values()
    event = running.event
    row = {
        "id": event.id, "start_ns": event.start_ns, "end_ns": event.end_ns, "target_w": -2000,
        "baseline_w": {"ann": [4000] * 4, "bob": [1000] * 4}, "measured_wh": {"ann": 1500, "bob": 300},
    }  # fmt: skip
    house.grid.running.clear()
    house.grid.response.settled = [row]
    await house.ven.look()
    await house.ven.look()
    (report,) = vtn.objects["reports"].values()
    assert (report["eventID"], report["clientName"]) == (name, "house")
    (resource,) = report["resources"]
    assert resource["resourceName"] == "AGGREGATED_REPORT"
    values = {one["type"]: one["values"] for one in resource["intervals"][0]["payloads"]}
    assert values == {"USAGE": [3.2], "BASELINE": [5.0]}
    assert resource["intervals"][0]["intervalPeriod"]["duration"] == "PT1H"
    assert "ann" not in json.dumps(report)


async def test_a_report_that_could_not_be_sent_is_sent_later(house, vtn, caplog):
    vtn.event(vtn.program("peaks"), house.at(4), "PT1H", {"DISPATCH_SETPOINT_RELATIVE": -2})
    await house.ven.look()
    (running,) = house.grid.running.values()
    event = running.event
    row = {
        "id": event.id,
        "start_ns": event.start_ns,
        "end_ns": event.end_ns,
        "target_w": -2000,
        "baseline_w": {},
        "measured_wh": {},
    }
    house.grid.running.clear()
    house.grid.response.settled = [row]
    vtn.broken["reports"] = (503, {})
    for _ in range(3):
        await house.ven.look()
    assert sum("the VTN answered 503" in record.message for record in caplog.records) == 1, "said once"
    vtn.broken.clear()
    await house.ven.look()
    assert len(vtn.objects["reports"]) == 1
    assert house.ven.connected


# -- the way there


async def test_one_token_serves_until_it_ends_or_is_refused(house, vtn, clock):
    await house.ven.look()
    await house.ven.look()
    assert vtn.calls.count("token") == 1
    vtn.tokens.clear()
    await house.ven.look()
    assert vtn.calls.count("token") == 2
    await clock.advance(3600)
    await house.ven.look()
    assert vtn.calls.count("token") == 3


async def test_wrong_credentials_are_an_error_of_their_own(vtn, clock, tmp_path):
    vtn.client = ("wattmesh", "another")
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=vtn.app))
    client = VenClient(config_of(tmp_path, url="http://127.0.0.1"), clock, http)
    with pytest.raises(UnauthorisedError):
        await client.programs()
    assert vtn.calls == ["token"], "asked once, not hammered"
    await client.close()


async def test_subscriptions_are_made_in_the_specifications_shape(house, vtn):
    operations = ObjectOperations(objects=["EVENT"], operations=["CREATE", "UPDATE"], callback_url="https://house/call")
    wanted = Subscription(client_name="house", program_id=vtn.program("peaks"), object_operations=[operations])
    made = await house.client.subscribe(wanted)
    assert made.id == "subscription-0"
    assert vtn.objects["subscriptions"]["subscription-0"]["objectOperations"][0]["callbackUrl"] == "https://house/call"


async def test_lists_are_read_page_by_page_and_have_an_end(house, vtn):
    for number in range(120):
        vtn.program(f"p{number}")
    assert len(await house.client.programs()) == 120
    for number in range(1000):
        vtn.program(f"q{number}")
    with pytest.raises(InvalidMessageError, match="more than 1000"):
        await house.client.programs()


async def test_an_answer_without_end_is_cut(clock, tmp_path):
    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b" " * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=endless))
    client = VenClient(config_of(tmp_path, url="http://127.0.0.1"), clock, http)
    with pytest.raises(InvalidMessageError, match="more than 4000000 bytes"):
        await client.programs()
    await client.close()


async def test_nobody_there_is_unavailable(clock, tmp_path, free_port):
    client = VenClient(config_of(tmp_path, url=f"http://127.0.0.1:{free_port}"), clock)
    with pytest.raises(UnavailableError):
        await client.programs()
    await client.close()


def test_secrets_do_not_travel_in_the_clear(clock, tmp_path):
    with pytest.raises(ConfigurationError, match="in the clear"):
        VenClient(config_of(tmp_path, url="http://vtn.example"), clock)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        VenClient(config_of(tmp_path, client_secret=tmp_path / "none"), clock)


# -- whatever it answers

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
moments = st.sampled_from(
    [
        "2023-11-15T04:00:00Z",
        "0000-00-00",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "2023-11-15T04:00:00",
        "now",
        "",
    ]
)
durations = st.sampled_from(["PT1H", "PT15M", "P9999Y", "-PT1H", "PT0S", "P1DT1S", "1h", ""])
values = st.lists(
    st.one_of(st.floats(), st.integers(-(10**18), 10**18), st.text(max_size=5), st.booleans()), max_size=3
)
shaped = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["e1", "e2", "", "x" * 200, "../etc"]),
        "programID": st.sampled_from(["p", "program-0"]),
        "intervals": st.lists(
            st.fixed_dictionaries(
                {
                    "id": st.integers(-3, 2**40),
                    "payloads": st.lists(
                        st.fixed_dictionaries(
                            {
                                "type": st.sampled_from(
                                    ["DISPATCH_SETPOINT_RELATIVE", "SIMPLE", "IMPORT_CAPACITY_LIMIT", "PRICE", "ELSE"]
                                ),
                                "values": values,
                            }
                        ),
                        max_size=3,
                    ),
                },
                optional={"intervalPeriod": st.fixed_dictionaries({"start": moments, "duration": durations})},
            ),
            max_size=4,
        ),
    },
    optional={
        "intervalPeriod": st.fixed_dictionaries({"start": moments}, optional={"duration": durations}),
        "extra": anything,
    },
)
answers = st.tuples(
    st.sampled_from([200, 200, 200, 204, 302, 400, 404, 429, 500]),
    st.one_of(anything.map(lambda one: json.dumps(one).encode()), st.binary(max_size=50), st.lists(shaped, max_size=4).map(
        lambda rows: json.dumps(rows).encode()
    )),
)  # fmt: skip


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["token", "vens", "programs", "events", "reports"]), answers)
async def test_whatever_the_vtn_answers_is_followed_or_told(house, vtn, kind, answer):
    vtn.broken = {kind: answer}
    vtn.objects["programs"] = {"p": {"id": "p", "programName": "peaks"}}
    house.start()
    before = dict(house.grid.running)
    await house.ven.look()
    now = house.clock.utc_ns()
    for one in house.grid.running.values():
        event = one.event
        assert event.start_ns % SLOT == 0
        assert event.start_ns > now or event.id in before
        assert 0 < event.end_ns - event.start_ns <= 48 * SLOT + SLOT
        assert event.target_w != 0
        assert event.price_ticks >= 0
    await house.client.close()


@settings(max_examples=300, deadline=None)
@given(shaped)
def test_a_plan_is_whole_or_refused_with_a_reason(row):
    try:
        event = Event.model_validate(row)
    except ValueError:
        return
    now = ManualClock().utc_ns()
    plans, wrong = plans_of(event, now, price=0.3, expected_w=lambda start, end: 4000.0)
    assert len(plans) + len(wrong) <= len(event.intervals)
    assert len({one.id for one in plans}) == len(plans)
    for one in plans:
        assert now < one.start_ns < one.end_ns
        assert one.start_ns % SLOT == one.end_ns % SLOT == 0
    assert report_of(event, [], "house").wire()["eventID"] == event.id


def test_the_clouds_file_places_the_secret_beside_itself(tmp_path):
    from wattmesh_cloud.config import load_cloud

    (tmp_path / "vtn.secret").write_text("x")
    (tmp_path / "keys").mkdir()
    (tmp_path / "cloud.yaml").write_text(
        "version: 1\norg: demo\nstate: state\nbroker: mqtt://127.0.0.1:1883\nkeys: keys\n"
        "market:\n  area: a\n  tariff: {feed_in_price: 0.05, default_price: 0.3}\n"
        "  participants: [{id: ann, import_limit_w: 1, export_limit_w: 1, credit_limit: 1}]\n"
        "grid:\n  openadr: {url: https://vtn.example/openadr3, client_id: c, client_secret: vtn.secret}\n"
    )
    openadr = load_cloud(tmp_path / "cloud.yaml").model.grid.openadr
    assert openadr.client_secret == tmp_path / "vtn.secret"
