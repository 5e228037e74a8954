"""The cloud's file: what is wrong is said in one line with file, line and field."""

import subprocess
import sys
from pathlib import Path

import pytest
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_cloud.config import load_cloud

FILE = """\
version: 1
org: demo
state: state
broker: mqtt://127.0.0.1:1883
keys: keys
http: {host: 127.0.0.1, port: 8080}
market:
  area: area-1
  time_zone: Europe/Berlin
  gate_open_s: 21600
  tariff:
    feed_in_price: 0.05
    default_price: 0.21
  participants:
    - {id: home-1, import_limit_w: 12000, export_limit_w: 8000, credit_limit: 200.0}
    - {id: home-2, import_limit_w: 12000, export_limit_w: 8000, credit_limit: 200.0}
"""


@pytest.fixture
def load(tmp_path):
    def loaded(*changes: tuple[str, str]):
        text = FILE
        for old, new in changes:
            assert text.count(old) == 1, "the change has to change something"
            text = text.replace(old, new)
        path = tmp_path / "cloud.yaml"
        path.write_text(text)
        return load_cloud(path)

    return loaded


def test_a_good_file_with_paths_beside_it(load, tmp_path):
    config = load()
    assert (config.state, config.keys, config.history) == (tmp_path / "state", tmp_path / "keys", None)
    assert [one.id for one in config.model.market.participants] == ["home-1", "home-2"]
    assert config.model.market.slot_s == 900


def test_the_example_file_loads():
    path = Path(__file__).parents[2] / "firmware_configs" / "cloud.yaml"
    assert load_cloud(path).model.market.area == "demo-area"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("version: 1", "version: 2"), r"cloud\.yaml:1: version: .*1"),
        (("port: 8080", "port: 99999"), r"cloud\.yaml:6: http\.port: .*65535.*99999"),
        (("  area: area-1\n", ""), r"cloud\.yaml:7: market\.area: is missing"),
        (("gate_open_s:", "gate_opens_s:"), r"cloud\.yaml:10: market\.gate_opens_s: .*did you mean 'gate_open_s'"),
        (("id: home-2", "id: home-1"), r"cloud\.yaml:7: market: .*'home-1' stands twice"),
        (("21600", "60"), r"cloud\.yaml:7: market: .*gate_open_s must be larger than gate_close_s"),
        (("feed_in_price: 0.05", "feed_in_price: cheap"), r"cloud\.yaml:12: market\.tariff\.feed_in_price: .*'cheap'"),
        (("keys: keys", "keys: keys\nkeys: more"), r"cloud\.yaml:6: keys: stands twice"),
        (("org: demo", "org: [demo"), r"cloud\.yaml:\d+: not YAML"),
        (("Europe/Berlin", "Europe/Atlantis"), r"'Europe/Atlantis' is unknown; use an IANA name"),
        (("keys: keys", "keys: keys\nhistory: nowhere"), r"history: .*nowhere is no folder"),
        (("mqtt://127.0.0.1:1883", "http://127.0.0.1"), r"mqtt"),
    ],
)
def test_every_mistake_says_where_and_what(load, change, wanted):
    with pytest.raises(ConfigurationError, match=wanted):
        load(change)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "::"])
def test_an_api_that_others_could_reach_is_refused(load, host):
    with pytest.raises(ConfigurationError, match=r"http\.host: .*give http\.certificate, .*or use 127\.0\.0\.1"):
        load(("host: 127.0.0.1", f'host: "{host}"'))


@pytest.mark.parametrize("host", ["localhost", "::1", "127.0.0.2"])
def test_this_machine_alone_is_fine(load, host):
    assert load(("host: 127.0.0.1", f'host: "{host}"')).model.http.host == host


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nothing\.yaml: cannot be read"):
        load_cloud(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("http", "access", "text"),
    [
        ("port: 8080, certificate: a.pem", "{}", "certificate and key go together"),
        ('port: 8080, public_url: "http://console.example.org"', "{}", "has to be https"),
        ('port: 8080, public_url: "https://console.example.org"', "{demo: true}", "everybody would be admin"),
        ("port: 8080", "{tenants: {fleet: [home-1]}}", "leave it out"),
        ("port: 8080", "{tenants: {Acme Ltd: []}}", "tenants"),
        ("port: 8080", '{oidc: {issuer: "http://id.example.org", client_id: x, groups: []}}', "has to be https"),
    ],
)
def test_a_door_that_would_stand_open_is_refused(load, http, access, text):
    with pytest.raises(ConfigurationError, match=text):
        load(("port: 8080", http), ("keys: keys", f"keys: keys\naccess: {access}"))


def test_a_fleet_behind_tls_is_taken(load):
    found = load(
        ("port: 8080", 'port: 8443, certificate: a.pem, key: a.key, public_url: "https://console.example.org"'),
        ("host: 127.0.0.1", "host: 0.0.0.0"),
        ("keys: keys", "keys: keys\naccess: {tenants: {acme: [home-1]}, idle_min: 15}"),
    )
    assert found.model.http.certificate.is_absolute()
    assert found.model.access.tenants == {"acme": ("home-1",)}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a2a: {port: 8090, tokens: t.json, host: 10.0.0.1}", "without TLS"),
        ("a2a: {port: 8090, tokens: t.json, client_ca: ca.pem}", "without TLS"),
        ("a2a: {port: 8090, tokens: t.json, certificate: c.pem}", "go together"),
        ("a2a: {tokens: t.json}", "port"),
    ],
    ids=["beyond loopback", "client certificates", "no key", "no port"],
)
def test_a2a_over_http_is_safe_or_an_error(tmp_path, lines, said):
    path = tmp_path / "cloud.yaml"
    path.write_text(f"{FILE}{lines}\n")
    with pytest.raises(ConfigurationError, match=said):
        load_cloud(path)


MEMORY = """
import sys
from wattmesh_cloud.cli import give_back_memory
import numpy as np

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "on":
    assert give_back_memory()
np.zeros(4_000_000)  # a large one that is freed: from now on glibc would take as large ones from its heap
before, kept = resident(), []
for _ in range(20):
    large = np.ones(2_000_000)
    kept.append(bytes(100_000))  # what stays lies behind it
    del large
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_the_cloud_keeps_no_memory_of_arrays_that_it_has_freed():
    done = subprocess.run([sys.executable, "-c", MEMORY, "on"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000_000, "twenty arrays of 16 MB were freed"
