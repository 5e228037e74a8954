"""The site file: every mistake names file, line and field, and nothing starts half."""

from pathlib import Path

import pytest
import wattmesh_edge.config as config
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.cli import gateway

EXAMPLE = Path("firmware_configs/sites/home-1.yaml")


@pytest.fixture
def example():
    root = Path(__file__).parents[2]
    return (root / EXAMPLE).read_text()


def load(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return config.load_site(path)


def test_the_example_is_sound(tmp_path, example):
    site = load(tmp_path, example)
    assert site.grid_meter == "meter"
    assert site.state == tmp_path / "state" / "home-1"
    assert site.tariff.import_price_ticks(1_662_069_600 * 10**9) == 5400  # 2022-09-01 15:00 at UTC-7


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "import_limit_w: 12000",
            "import_limit_w: -1",
            "connection.import_limit_w: input should be greater than 0 (found -1)",
        ),
        ("time_zone:", "timezone:", "unknown field; did you mean 'time_zone'?"),
        ("Etc/GMT+7", "Etc/Nowhere", "time zone 'Etc/Nowhere' is unknown"),
        (", role: grid}", "}", "exactly one meter needs role: grid"),
        ("template: sunspec_battery", "template: sunspec_batery", "there is no device template 'sunspec_batery'"),
        (", rated_power_w: 5000, rated_energy_wh: 6400", "", "a battery needs rated_power_w and rated_energy_wh"),
        ("device: battery, profile", "device: meter, profile", "no register that the reflex may write"),
        ("point: frequency_hz", "point: frequenz", "has no 'frequenz'; it has"),
        ("device: meter, point", "device: metre, point", "'metre' is none of the devices inverter, battery, meter"),
        (
            "export_limit_w: 8000",
            "export_limit_w: 3000",
            "could ask for 5000 W of export, and the connection carries 3000 W",
        ),
        ("profile: ieee1547_2018_cat_iii", "profile: ieee1547", "there is no response profile 'ieee1547'"),
        ("profile: ieee1547_2018_cat_iii", "profile: nordic_ffr_a", "is for 50 Hz, and the grid has 60 Hz"),
        ("device: meter, point: frequency_hz", 'udp: "127.0.0.1:9700"', "udp needs rate_hz"),
        ("device: meter, point: frequency_hz", "poll_ms: 20, rail_v: 1", "poll_ms: stands twice"),
        (
            "source: {device: meter,",
            "source: {device: meter, file: a.wav,",
            "give one of device, file, adc, udp and pmu",
        ),
        ("mqtt://127.0.0.1:1883", "mqtt://broker.example:1883", "plain text is for loopback only"),
        ("agents: [producer, consumer]", "agents: [producer, trader]", "input should be 'producer' or 'consumer'"),
        ("period_s: 1.0", "period_s: 0", "greater than or equal to 0.1"),
    ],
)
def test_a_mistake_is_named(tmp_path, example, old, new, told):
    assert old in example
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, example.replace(old, new, 1))
    assert told in str(caught.value)
    number = int(str(caught.value).removeprefix(f"{tmp_path / 'site.yaml'}:").partition(":")[0])
    if (
        new and "exactly one" not in told and "carries" not in told
    ):  # the line that was changed, or the device that it belongs to
        assert new.partition(":")[0].split(",")[0].strip() in example.replace(old, new, 1).splitlines()[number - 1]


def test_paths_of_a_source_are_relative_to_the_file(tmp_path, example):
    text = example.replace("{device: meter, point: frequency_hz, poll_ms: 20}", "{file: mains.wav, phases: 1}")
    assert text != example
    assert load(tmp_path, text).model.frequency.source.file == tmp_path / "mains.wav"


def test_the_profile_of_the_response_comes_with_the_site(tmp_path, example):
    site = load(tmp_path, example)
    assert site.profile.id == "ieee1547_2018_cat_iii"
    watching = example.replace("  response: {device: battery, profile: ieee1547_2018_cat_iii}", "  #")
    assert load(tmp_path, watching).profile is None


def test_check_says_fine_and_starts_nothing(tmp_path, example, capsys):
    path = tmp_path / "site.yaml"
    path.write_text(example)
    assert gateway(["check", str(path)]) == 0
    assert "home-1 is fine" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["site.yaml"]


def test_a_gateway_without_its_key_says_which_file(tmp_path, example):
    path = tmp_path / "site.yaml"
    path.write_text(example)
    with pytest.raises(ConfigurationError, match=r"keys/home-1\.key: the key cannot be read"):
        gateway(["run", str(path)])


BATTERY = "connection: {host: 127.0.0.1, port: 15011, unit: 1}"
METER = "connection: {host: 127.0.0.1, port: 15012, unit: 1}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({METER: "connection: {}"}, "sunspec_meter_203 needs host, or serial"),
        ({METER: "connection: {host: h, serial: /dev/ttyUSB0}"}, "a device is reached one way"),
        (
            {
                BATTERY: "connection: {serial: /dev/ttyUSB0, baud: 9600, unit: 1}",
                METER: "connection: {serial: /dev/ttyUSB0, baud: 19200, unit: 2}",
                ", profile: ieee1547_2018_cat_iii": ", profile: ieee1547_2018_cat_iii",
            },
            "meter and battery share /dev/ttyUSB0 and want it set in two ways",
        ),
        (
            {BATTERY: "connection: {host: h, framing: rtu}"},
            "the reflex writes over plain Modbus TCP, and battery is reached",
        ),
        ({METER: "connection: {host: h, baud: 5}"}, "connection.baud"),
    ],
)
def test_a_device_that_cannot_be_reached_as_it_says_is_told(tmp_path, example, change, told):
    for old, new in change.items():
        assert old in example
        example = example.replace(old, new)
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, example)
    assert told in str(caught.value)


def test_devices_may_share_a_serial_line_and_their_files_lie_beside_the_sites(tmp_path, example):
    text = example.replace(METER, "connection: {serial: /dev/ttyUSB0, baud: 9600, unit: 2}")
    text = text.replace(
        "connection: {host: 127.0.0.1, port: 15010, unit: 1}",
        "connection: {host: h, tls: {ca: pki/ca.pem}, proxy_port: 1502}",
    )
    site = load(tmp_path, text)
    inverter = next(device for device in site.model.devices if device.id == "inverter")
    assert inverter.connection.tls.ca == tmp_path / "pki" / "ca.pem"
    assert inverter.connection.proxy_host == "127.0.0.1"


def test_a_battery_that_is_only_watched_needs_no_ratings(tmp_path, example):
    line = next(line for line in example.splitlines() if "id: battery" in line)
    text = example.replace(line, "  - {id: battery, template: victron_gx_battery, connection: {host: h}}")
    text = text.replace(
        "  response: {device: battery, profile: ieee1547_2018_cat_iii}   # leave out to watch only\n", ""
    )
    assert load(tmp_path, text).templates["battery"].monitor_only
