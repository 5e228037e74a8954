"""Weather: providers against a stand-in server with documented answers, files, the clear sky, staleness, and PV from it."""

import json
import logging
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_cloud.forecasting.config import ForecastingConfig, WeatherConfig
from wattmesh_cloud.forecasting.model import LEVELS
from wattmesh_cloud.forecasting.providers import (
    ClearSky,
    OpenMeteo,
    OpenWeather,
    WeatherFiles,
    place_of,
    provider_of,
)
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.forecasting.weather import (
    HOUR_NS,
    Place,
    WeatherHour,
    clear_sky_w_m2,
    clouded_w_m2,
    sine_of_elevation,
    split_global,
    with_irradiance,
)
from wattmesh_cloud.forecasting.weather_pv import weather_pv
from wattmesh_cloud.forecasting.weather_service import WeatherDesk
from wattmesh_cloud.store.base import Table

BERLIN = Place(latitude_deg=52.52, longitude_deg=13.41)
NOON = round(datetime(2026, 6, 21, 11, tzinfo=UTC).timestamp()) * NS_PER_S


@pytest.fixture
def server():
    """A stand-in that answers as told and remembers what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            status, text = self.server.answer(parse_qs(urlsplit(self.path).query))
            self.send_response(status)
            if status in {301, 302}:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.daemon_threads = [], True
    found.url = f"http://127.0.0.1:{found.server_port}/v1"
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def open_meteo(first_s=NOON // NS_PER_S - 3 * 3600, hours=48, **changes):
    """As api.open-meteo.com answers with timeformat=unixtime."""
    count = range(hours)
    hourly = {
        "time": [first_s + 3600 * at for at in count],
        "temperature_2m": [20.5 + at / 10 for at in count],
        "relative_humidity_2m": [60] * hours,
        "wind_speed_10m": [3.2] * hours,
        "cloud_cover": [25] * hours,
        "shortwave_radiation": [float(10 * at) for at in count],
        "direct_normal_irradiance": [float(8 * at) for at in count],
        "diffuse_radiation": [float(2 * at) for at in count],
    }
    return {
        "latitude": 52.52, "longitude": 13.42, "generationtime_ms": 0.06, "utc_offset_seconds": 0, "timezone": "GMT",
        "hourly_units": {"time": "unixtime", "temperature_2m": "°C"}, "hourly": hourly | changes,
    }  # fmt: skip


def one_call(hours=48, **changes):
    """As api.openweathermap.org/data/3.0/onecall answers."""
    rows = [
        {
            "dt": NOON // NS_PER_S + 3600 * at, "temp": 24.1, "feels_like": 24.0, "pressure": 1015, "humidity": 55,
            "dew_point": 14.5, "uvi": 6, "clouds": 40, "visibility": 10000, "wind_speed": 4.1, "wind_deg": 230, "pop": 0.1,
            "weather": [{"id": 802, "main": "Clouds", "description": "scattered clouds", "icon": "03d"}],
        }
        | changes
        for at in range(hours)
    ]  # fmt: skip
    return {"lat": 52.52, "lon": 13.41, "timezone": "Europe/Berlin", "timezone_offset": 7200, "hourly": rows}


# -- providers


def test_open_meteo_is_read_with_its_irradiance_an_hour_back(server):
    server.answer = lambda query: (200, json.dumps(open_meteo()))
    found = OpenMeteo(server.url).forecast(BERLIN, NOON)
    assert found.source == "open-meteo"
    assert len(found.hours) == 47
    third = found.hours[3]
    assert third.start_ns == NOON
    assert (third.temperature_c, third.humidity_percent, third.wind_m_s, third.cloud_percent) == (20.8, 60, 3.2, 25)
    assert third.global_w_m2 == 40, "its 40 W/m² at 12:00 are the mean of the hour from 11:00 on"
    query = parse_qs(urlsplit(server.asked[0]).query)
    assert query["latitude"] == ["52.5200"]
    assert "shortwave_radiation" in query["hourly"][0]


def test_openweather_needs_its_key_and_gets_irradiance_from_clouds(server, tmp_path):
    key = tmp_path / "key"
    key.write_text("s3cret-key\n")
    server.answer = lambda query: (200 if query["appid"] == ["s3cret-key"] else 401, json.dumps(one_call()))
    found = OpenWeather(key, server.url).forecast(BERLIN, NOON)
    noon = found.hours[0]
    assert noon.temperature_c == 24.1
    assert noon.global_w_m2 == pytest.approx(clouded_w_m2(clear_sky_w_m2(BERLIN, NOON), 40))
    assert 600 < noon.global_w_m2 < 900
    key.write_text("other")
    with pytest.raises(ConfigurationError, match="refused with 401"):
        OpenWeather(key, server.url).forecast(BERLIN, NOON)
    key.write_text("")
    with pytest.raises(ConfigurationError, match="is empty"):
        OpenWeather(key, server.url).forecast(BERLIN, NOON)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        OpenWeather(tmp_path / "none", server.url).forecast(BERLIN, NOON)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, "{}"),
        (429, "{}"),
        (200, "<html>busy</html>"),
        (200, "{}"),
        (200, '{"hourly": {"time": ["x", "y"]}}'),
        (200, '{"hourly": []}'),
        (200, json.dumps(open_meteo(first_s=0))),
        (302, ""),
        (200, '{"pad": "' + "x" * 2_100_000 + '"}'),
    ],
    ids=["broken", "too often", "no json", "empty", "no times", "list", "long ago", "moved", "endless"],
)
def test_an_answer_that_cannot_be_used_can_be_asked_for_again(server, status, text):
    server.answer = lambda query: (status, text)
    with pytest.raises(UnavailableError) as error:
        OpenMeteo(server.url).forecast(BERLIN, NOON)
    assert "open-meteo" in str(error.value)


def test_no_server_no_route_no_web_address(server):
    server.answer = lambda query: (404, "")
    with pytest.raises(ConfigurationError, match="refused with 404"):
        OpenMeteo(server.url).forecast(BERLIN, NOON)
    with pytest.raises(ConfigurationError, match="no web address"):
        OpenMeteo("file:///etc/passwd").forecast(BERLIN, NOON)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        OpenMeteo("http://127.0.0.1:1/").forecast(BERLIN, NOON)


def test_values_that_cannot_be_true_are_unknown(server):
    wild = open_meteo(temperature_2m=[400.0] * 48, cloud_cover=[None] * 48, wind_speed_10m=["nan"] * 48)
    server.answer = lambda query: (200, json.dumps(wild))
    hour = OpenMeteo(server.url).forecast(BERLIN, NOON).hours[5]
    assert (hour.temperature_c, hour.cloud_percent, hour.wind_m_s) == (None, None, None)
    assert hour.humidity_percent == 60


def test_a_key_is_in_no_message_and_no_log(server, tmp_path, caplog):
    (tmp_path / "key").write_text("s3cret-key")
    server.answer = lambda query: (503, "")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UnavailableError) as error:
        OpenWeather(tmp_path / "key", server.url).forecast(BERLIN, NOON)
    assert "s3cret" not in str(error.value) + caplog.text
    assert error.value.__cause__ is None


def test_files_name_what_is_wrong(tmp_path):
    path = tmp_path / "weather.csv"
    path.write_text(
        "hour_start_utc,temperature_c,cloud_percent\n2026-06-21T11:00:00+00:00,21.5,\n2026-06-21T12:00:00+00:00,,50\n"
    )
    first, second = WeatherFiles(path).forecast(BERLIN, NOON).hours
    assert (first.temperature_c, first.global_w_m2) == (21.5, None)
    assert second.global_w_m2 is not None
    with pytest.raises(UnavailableError, match="no weather of this time"):
        WeatherFiles(path).forecast(BERLIN, NOON + 9000 * HOUR_NS)
    for text, message in (
        ("hour_start_utc,rain\n", ":1: hour_start_utc is needed"),
        ("hour_start_utc,temperature_c\nx,1\n", ":2: not a time"),
        ("hour_start_utc,temperature_c\n2026-06-21T11:00:00,1\n", ":2: a whole hour in UTC"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            WeatherFiles(path).forecast(BERLIN, NOON)


# -- the sky


def test_the_sun_stands_where_almanacs_say():
    assert np.degrees(np.arcsin(sine_of_elevation(BERLIN, NOON + HOUR_NS // 9))) == pytest.approx(60.9, abs=0.3)
    equator = Place(latitude_deg=0.0, longitude_deg=0.0)
    equinox = round(datetime(2026, 3, 20, 12, 7, tzinfo=UTC).timestamp()) * NS_PER_S
    assert sine_of_elevation(equator, equinox) == pytest.approx(1.0, abs=1e-3)
    assert clear_sky_w_m2(BERLIN, NOON - 12 * HOUR_NS) == 0


def test_clouds_take_three_quarters_at_most_and_parts_sum_up():
    assert clouded_w_m2(800, 0) == 800
    assert clouded_w_m2(800, 100) == pytest.approx(200)
    for level in (50.0, 300.0, 700.0, 950.0):
        direct, diffuse = split_global(level, 0.8)
        assert 0.8 * direct + diffuse == pytest.approx(level)
    hour = WeatherHour(start_ns=NOON, cloud_percent=10.0, global_w_m2=333.0)
    assert with_irradiance(BERLIN, hour) is hour, "what a provider says stands"


# -- schedule and staleness


class Told:
    """A provider that answers or fails as told."""

    name = "told"

    def __init__(self):
        self.fails, self.calls = None, 0

    def forecast(self, place, now_ns):
        self.calls += 1
        if self.fails:
            raise self.fails
        return ClearSky().forecast(place, now_ns)


async def test_an_answer_is_shared_kept_and_not_used_when_stale(store, caplog):
    provider = Told()
    desk = WeatherDesk(provider, store, every_s=3600, stale_s=7200)
    sites = {"home-1": BERLIN, "home-2": BERLIN}
    await desk.refresh(sites, NOON)
    await desk.refresh(sites, NOON + HOUR_NS // 2)
    assert provider.calls == 1, "one place, one question an hour"
    hours, reasons = desk.at(BERLIN, NOON + HOUR_NS)
    assert reasons == ()
    assert hours[NOON].global_w_m2 == pytest.approx(clear_sky_w_m2(BERLIN, NOON))
    rows = store.query(Table.FORECAST_DATA, "home-2#weather", 0, 2**62)
    assert rows[0].time_ns == NOON
    assert rows[0].data["source"] == "clear-sky"
    provider.fails = UnavailableError("the line is cut")
    with caplog.at_level(logging.INFO):
        for minute in range(60, 240):
            await desk.refresh(sites, NOON + minute * 60 * NS_PER_S)
    assert [line.getMessage() for line in caplog.records].count(
        "no weather: the line is cut; forecasts go on without"
    ) == 1
    assert provider.calls < 12, "pauses grow"
    assert desk.at(BERLIN, NOON + 119 * 60 * NS_PER_S)[1] == ()
    hours, reasons = desk.at(BERLIN, NOON + 3 * HOUR_NS)
    assert (hours, reasons) == ({}, ("weather: the last is 3 h old",))
    provider.fails = None
    await desk.refresh(sites, NOON + 9 * HOUR_NS)
    assert desk.at(BERLIN, NOON + 9 * HOUR_NS)[1] == ()
    assert desk.snapshot()["failing"] == []


async def test_where_there_never_was_any_the_reason_is_told(store):
    provider = Told()
    provider.fails = ConfigurationError("the key is refused")
    desk = WeatherDesk(provider, store)
    assert desk.at(BERLIN, NOON) == ({}, ("weather: not known yet",))
    await desk.refresh({"home-1": BERLIN}, NOON)
    assert desk.at(BERLIN, NOON) == ({}, ("weather: the key is refused",))


# -- PV


def plant(days, clouds):
    """PV that is 3.1 Wh a quarter hour of each W/m², half in the afternoon for a tree, under given clouds."""
    past, then = {}, {}
    for hour in range(-24 * days, 48):
        start = NOON + hour * HOUR_NS
        level = clear_sky_w_m2(BERLIN, start) * clouds(hour)
        then[start] = WeatherHour(start_ns=start, global_w_m2=level)
        shade = 0.5 if start // HOUR_NS % 24 >= 14 else 1.0
        for step in range(4):
            past[start + step * HOUR_NS // 4] = 100.0, 3.1 * shade * level
    return past, then


def test_pv_follows_the_expected_irradiance_with_the_plant_s_own_shade():
    chance = np.random.default_rng(0)
    factors = chance.uniform(0.2, 1.0, 24 * 40)
    past, then = plant(30, lambda hour: factors[hour + 24 * 30])
    known = {slot: one for slot, one in past.items() if slot < NOON}
    gone = {start: one for start, one in then.items() if start < NOON}
    table = weather_pv(known, gone, then, NOON, 96, LEVELS, UTC)
    assert table.shape == (96, len(LEVELS))
    wanted = np.array([past[NOON + step * HOUR_NS // 4][1] for step in range(96)])
    assert np.abs(table[:, 2].reshape(-1, 4).sum(1) - wanted.reshape(-1, 4).sum(1)).max() < 0.02 * 4 * wanted.max()
    assert (np.diff(table, axis=1) >= -1e-9).all()
    assert (table[44:52] == 0).all(), "no light at night"


def test_too_little_of_either_is_no_forecast():
    past, then = plant(30, lambda hour: 0.8)
    known = {slot: one for slot, one in past.items() if slot < NOON}
    gone = {start: one for start, one in then.items() if start < NOON}
    assert weather_pv({}, gone, then, NOON, 96, LEVELS, UTC) is None
    assert weather_pv(known, {}, then, NOON, 96, LEVELS, UTC) is None
    assert weather_pv(known, gone, gone, NOON, 96, LEVELS, UTC) is None


async def test_the_forecaster_has_one_candidate_more_with_weather(
    store, messenger, clock, tmp_path, background, settled
):
    now = clock.utc_ns() - clock.utc_ns() % HOUR_NS
    desk = WeatherDesk(ClearSky(), store)
    service = ForecastingService(
        ForecastingConfig(horizon_s=86_400), store, messenger, clock, tmp_path, "demo", weather=desk, places=lambda site: BERLIN
    )  # fmt: skip
    for hour in range(-24 * 12, 0):
        start = now + hour * HOUR_NS
        level = clear_sky_w_m2(BERLIN, start)
        desk._keep(["home-1"], ClearSky(1).forecast(BERLIN, start))
        for step in range(4):
            service._past["home-1"][start + step * HOUR_NS // 4] = 100.0, 2.0 * level
    background(service.run())
    await clock.advance(0)
    await settled(service)
    assert set(service._candidates["home-1"]["pv_wh"]) == {"seasonal-quantiles-28d", "weather-pv"}
    assert service.latest["home-1"]["pv_wh"].model == "seasonal-quantiles-28d", "it has to show first that it is better"
    assert service.reasons("home-1") == ()


def test_a_file_chooses_provider_and_places(tmp_path):
    where = {"latitude": 34.1, "longitude": -117.4}
    for name, kind in (("open-meteo", OpenMeteo), ("clear-sky", ClearSky)):
        assert isinstance(provider_of(WeatherConfig(provider=name, place=where)), kind)
    config = WeatherConfig(
        provider="files", place=where, file=tmp_path / "w.csv", sites={"a": {"latitude": 1, "longitude": 2}}
    )
    assert isinstance(provider_of(config), WeatherFiles)
    assert place_of(config, "a").latitude_deg == 1
    assert place_of(config, "b").longitude_deg == -117.4
    with pytest.raises(ValueError, match="needs key"):
        WeatherConfig(provider="openweather", place=where)
    with pytest.raises(ValueError, match="needs file"):
        WeatherConfig(provider="files", place=where)
