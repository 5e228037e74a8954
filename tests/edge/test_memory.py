"""What was told before a restart still holds after it, until it is over."""

import sqlite3

from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import DemandResponseDispatch
from wattmesh_a2a.messages import ForecastIssued, Strategy
from wattmesh_edge.memory import Memory

STRATEGY = Strategy(
    site_id="home-1", expires_ns=1000, reserve_soc_percent=20.0, peak_limit_w=None, trade=True, rationale="storm"
)


def test_what_was_kept_is_there_after_a_restart_until_it_is_over(tmp_path):
    path = tmp_path / "gateway.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    memory = Memory(db)
    memory.keep("strategy", "home-1", STRATEGY, STRATEGY.expires_ns)
    dispatch = DemandResponseDispatch(
        event_id="e1", site_id="home-1", start_ns=0, end_ns=500, power_w=-1000, baseline_w=2000, price_ticks=5
    )
    memory.keep("dispatch", "e1", dispatch, dispatch.end_ns)
    # no close: killed
    again = Memory(sqlite3.connect(path))
    assert again.recall("strategy", 999) == {"home-1": STRATEGY}
    assert again.recall("strategy", 1000) == {}
    assert again.recall("dispatch", 499) == {"e1": dispatch}
    again.prune(700)
    assert again.recall("dispatch", 0) == {}
    assert again.recall("strategy", 0) == {"home-1": STRATEGY}


def test_a_forecast_comes_back_as_it_was():
    memory = Memory(sqlite3.connect(":memory:"))
    forecast = Forecast(
        site_id="home-1",
        quantity="load_wh",
        issued_ns=1,
        start_ns=0,
        slot_s=900,
        levels=(0.1, 0.5, 0.9),
        values=((1.0, 2.0, 3.0),) * 4,
        model="m",
    )  # fmt: skip
    memory.keep("forecast", "load_wh", ForecastIssued(forecasts=(forecast,)), 10**15)
    assert memory.recall("forecast", 5)["load_wh"].forecasts == (forecast,)


def test_what_cannot_be_read_is_left_out_and_said(caplog):
    db = sqlite3.connect(":memory:")
    memory = Memory(db)
    memory.keep("strategy", "home-1", STRATEGY, 1000)
    db.execute("UPDATE kept SET line = ?", (b"{}",))
    assert memory.recall("strategy", 5) == {}
    assert "cannot be read" in caplog.text
