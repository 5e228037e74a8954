"""A folder of data as a user would write it."""

from datetime import UTC, datetime, timedelta

import pytest
import yaml

START = datetime(2026, 6, 1, tzinfo=UTC)
TARIFF = {"feed_in_price": 0.05, "default_price": 0.20, "periods": [{"from": "17:00", "to": "21:00", "price": 0.50}]}


class Folder:
    """Writes ``backtest.yaml`` and a CSV a site."""

    def __init__(self, path):
        self.path = path
        self.sites = {}

    def site(self, name, rows, **more):
        """``rows``: (load Wh, PV Wh) a quarter hour; text goes into the file as it is."""
        self.sites[name] = more
        lines = [
            f"{(START + timedelta(minutes=15 * at)):%Y-%m-%dT%H:%M:%SZ},{load},{pv}"
            for at, (load, pv) in enumerate(rows)
        ]
        self.write(name, "\n".join(["slot_start_utc,load_wh,pv_wh", *lines]) + "\n")
        return self

    def write(self, name, text):
        (self.path / f"{name}.csv").write_text(text, encoding="utf-8")
        self.save()

    def save(self, **changes):
        data = {"version": 1, "currency": "EUR", "time_zone": "UTC", "tariff": TARIFF, "sites": self.sites, **changes}
        (self.path / "backtest.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def sunny():
    """Rows of some days: a flat load, sun at noon, a dear evening."""

    def make(days, load=150.0, sun=700.0):
        day = []
        for slot in range(96):
            hour = slot / 4
            day.append((load * (3 if 17 <= hour < 21 else 1), sun * max(0.0, 1 - abs(hour - 12) / 5)))
        return day * days

    return make


BATTERY = {"battery": {"energy_wh": 5000, "power_w": 2500}}


@pytest.fixture
def battery():
    return BATTERY
