"""What can be compared: how the sites of a backtest are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.forecast import Forecast

from wattmesh_backtest.data import Period


class Forecaster(Protocol):
    """What the cloud would send to one site; causal: it has only what it was told to learn."""

    def learn(self, slot_ns: int, load_wh: float, pv_wh: float) -> None:
        """A slot is over."""
        ...

    def issue(self, site: str, now_ns: int) -> list[Forecast] | None:
        """New forecasts, where they are due."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """See :data:`CONTROLLERS`."""

    name: str
    title: str
    battery: bool = True
    plan: bool = True
    trade: bool = False
    forecasts: Literal["own", "cloud"] = "own"
    """``own``: the gateway's record of usual days. ``cloud``: the cloud's learned model."""
    coordinated: Literal["community"] | None = None
    step_s: int = 450
    replan_s: int = 3600
    issue_s: int = 21_600

    def forecaster(self, period: Period) -> Forecaster | None:
        """A new forecaster for one site; none where the gateway is alone."""
        if self.forecasts == "own":
            return None
        from wattmesh_backtest.forecasts import LearnedForecaster

        return LearnedForecaster(period.tariff.zone(), issue_s=self.issue_s)


CONTROLLERS: Mapping[str, Controller] = {
    one.name: one
    for one in (
        Controller(name="none", title="No battery", battery=False, plan=False),
        Controller(name="selfconsumption", title="Plain self-consumption battery", plan=False),
        Controller(name="gateway", title="Gateway's plan, alone"),
        Controller(name="market", title="Gateway's plan and the market", trade=True),
        Controller(name="cloud", title="Gateway's plan, cloud forecasts, market", trade=True, forecasts="cloud"),
        Controller(name="community", title="Community planned as one", plan=False, coordinated="community"),
    )
}


def controller_of(name: str) -> Controller:
    """A controller by its name; raises :class:`ConfigurationError`."""
    found = CONTROLLERS.get(name)
    if found is None:
        raise ConfigurationError(f"there is no controller {name!r}; there are: {', '.join(CONTROLLERS)}")
    return found
