"""The Python client: written from the API's own description, and used against it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from wattmesh_cloud.api import client as module
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.client import ApiError, Client
from wattmesh_cloud.api.generate import client_text, described

RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")


@pytest.mark.skipif(RUFF is None, reason="ruff is not installed")
def test_the_client_is_in_step_with_the_api():
    text = client_text(described())
    root = Path(__file__).parents[2]
    formatted = subprocess.run(
        [RUFF, "format", "--config", root / "pyproject.toml", "-"],
        input=text,
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert formatted == Path(module.__file__).read_text(), (
        "python -m wattmesh_cloud.api.generate > cloud/wattmesh_cloud/api/client.py, and ruff format it"
    )


@pytest.fixture
def fleet(api, token):
    """The client over the application, without a socket."""
    inner = TestClient(api, base_url="http://test")
    made = Client("http://test", token())
    made._http.close()
    inner.headers["Authorization"] = f"Bearer {token()}"
    made._http = inner
    return made


def test_it_gives_typed_answers(fleet):
    page = fleet.list_sites(limit=2)
    assert isinstance(page.rows[0], m.SiteRow)
    assert [row.id for row in page.rows] == ["ann", "bob"]
    assert fleet.get_market().area == "area-1"
    assert (
        fleet.list_intervals("ann", as_file="csv").startswith(b"\n")
        or fleet.list_intervals("ann", as_file="csv") == b"\n"
    )
    assert "wattmesh_market_trades" in fleet.get_metrics()


def test_it_sends_typed_bodies(fleet, clock):
    order = m.NewOrder(client_order_id="c-1", side="buy", quantity_wh=10, price_ticks=100)
    slot = clock.utc_ns() + 4 * 900 * 10**9
    (done,) = fleet.place_orders(m.PlaceOrders(site_id="ann", slot_start_ns=slot, orders=[order]))
    assert done.status == "accepted"


def test_a_refusal_is_an_error_with_its_text(fleet):
    with pytest.raises(ApiError, match="there is no site 'eve'") as told:
        fleet.get_site("eve")
    assert told.value.status == 404
