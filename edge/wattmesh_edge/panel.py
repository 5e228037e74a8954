"""What a site shows of itself: one state, told to its page, to Prometheus and to the service manager."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.devices import Quality
from wattmesh_drivers.driver import Driver, DriverState

from wattmesh_edge.control import ControlCycle
from wattmesh_edge.history import MINUTE_NS, History
from wattmesh_edge.local import Answer, Number, as_json, metrics_text, page
from wattmesh_edge.outbox import Outbox

_DAY_NS = 86_400 * NS_PER_S
_LATE_PERIODS = 3


class Panel:
    """Answers of the local server.

    Args:
        site_id: The site.
        control: Its control cycle.
        drivers: By device.
        outbox: What waits for the cloud.
        history: The last days.
        clock: The gateway's.
        period_s: Of the control cycle.
        totals: Counters since the gateway was installed.
        connected: Whether the broker is there.
        alarms: What stands.
    """

    def __init__(
        self,
        site_id: str,
        control: ControlCycle,
        drivers: Mapping[str, Driver],
        outbox: Outbox,
        history: History,
        clock: Clock,
        *,
        period_s: float,
        totals: Callable[[], Mapping[str, int]],
        connected: Callable[[], bool],
        alarms: Callable[[], Sequence[Alarm]],
    ) -> None:
        self._site = site_id
        self._control = control
        self._drivers = drivers
        self._outbox = outbox
        self._history = history
        self._clock = clock
        self._late_ns = round(_LATE_PERIODS * period_s * NS_PER_S)
        self._totals = totals
        self._connected = connected
        self._alarms = alarms

    def pages(self) -> Mapping[str, Callable[[str], Answer]]:
        """What :class:`wattmesh_edge.local.LocalServer` serves."""
        return {
            "/": page,
            "/api/now": lambda _: as_json(self.state()),
            "/api/history": lambda _: as_json(self.past()),
            "/healthz": lambda _: as_json({"healthy": self.healthy()}),
            "/metrics": lambda _: metrics_text(self.samples()),
        }

    def healthy(self) -> bool:
        """Whether a cycle was complete of late and every setpoint arrived: "healthy" means applied and read back."""
        image = self._control.image
        if image is None or self._clock.monotonic_ns() - image.monotonic_ns > self._late_ns:
            return False
        return all(outcome in {"Applied", "Clamped", "none"} for outcome in self._control.outcomes.values())

    def state(self) -> dict[str, object]:
        """The site at this moment, as the page shows it."""
        image = self._control.image
        grid = image.grid_power_w if image is not None else None
        states = [] if image is None else [one.soc_percent for one in image.batteries.values()]
        known = [soc for soc in states if soc is not None]
        return {
            "site": self._site,
            "time_ns": self._clock.utc_ns(),
            "healthy": self.healthy(),
            "cloud": self._connected(),
            "now": {
                "grid_w": None if grid is None else grid.value,
                "estimated": grid is not None and grid.quality != Quality.GOOD,
                "pv_w": image.pv_power_w if image is not None else None,
                "battery_w": image.battery_power_w if image is not None and image.batteries else None,
                "load_w": image.load_power_w if image is not None else None,
                "soc_percent": sum(known) / len(known) if known else None,
            },
            "decisions": [
                {
                    "asset": one.asset_id,
                    "target_w": one.target_w,
                    "by": one.decided_by,
                    "limit": one.limited_by,
                    "remaining_w": one.remaining_w,
                    "conflicts": list(one.conflicts),
                    "outcome": self._control.outcomes.get(one.asset_id, ""),
                }
                for one in self._control.decisions
            ],
            "devices": [
                {"id": name, "template": driver.template.id, "answers": driver.state is DriverState.READY}
                for name, driver in self._drivers.items()
            ],
            "alarms": [{"severity": str(alarm.severity), "text": alarm.text} for alarm in self._alarms()],
        }

    def past(self) -> dict[str, object]:
        """The last day in steps of ten minutes and its last minutes: rows of Unix milliseconds and values."""
        now = self._clock.utc_ns()
        rows = self._history.between(now - _DAY_NS, now + 1, 5 * MINUTE_NS)
        return {
            "columns": ["time_ms", "grid_w", "pv_w", "battery_w", "load_w", "soc_percent"],
            "rows": [
                [one.time_ns // 1_000_000, one.grid_w, one.pv_w, one.battery_w, one.load_w, one.soc_percent]
                for one in rows
            ],
        }

    def samples(self) -> Iterator[tuple[str, str, str, Mapping[str, str], Number | None]]:
        """Prometheus's samples."""
        image, control = self._control.image, self._control
        none: Mapping[str, str] = {}
        yield (
            "wattmesh_healthy",
            "gauge",
            "1 while complete cycles come and every setpoint arrives.",
            none,
            int(self.healthy()),
        )
        yield "wattmesh_cloud_connected", "gauge", "1 while the broker is there.", none, int(self._connected())
        for name, value in self._totals().items():
            yield f"wattmesh_{name}_total", "counter", "Since the gateway was installed.", none, value
        yield (
            "wattmesh_cycle_seconds_max",
            "gauge",
            "Longest control cycle of this start.",
            none,
            control.cycle_max_ns / 1e9,
        )
        yield "wattmesh_cycle_seconds", "gauge", "Last control cycle.", none, control.cycle_ns / 1e9
        yield "wattmesh_outbox_batches", "gauge", "Batches that wait for the cloud.", none, self._outbox.waiting()
        for name, value in self._outbox.counters().items():
            kind, _, stream = name.partition(".")
            if kind in {"measured", "dropped"}:
                labels = {"kind": kind, "stream": stream}
                yield "wattmesh_outbox_records_total", "counter", "Records by what became of them.", labels, value
        for name, driver in self._drivers.items():
            up = int(driver.state is DriverState.READY)
            yield "wattmesh_device_up", "gauge", "1 while the device answers.", {"device": name}, up
        if image is not None:
            grid = None if image.grid_power_w is None else image.grid_power_w.value
            powers = (
                ("grid", grid),
                ("pv", image.pv_power_w),
                ("battery", image.battery_power_w),
                ("load", image.load_power_w),
            )
            for name, power in powers:
                yield "wattmesh_power_watts", "gauge", "Power, positive into the component.", {"of": name}, power
            for name, battery in image.batteries.items():
                yield "wattmesh_soc_percent", "gauge", "State of charge.", {"device": name}, battery.soc_percent
        for decision in control.decisions:
            labels = {"asset": decision.asset_id}
            yield "wattmesh_remaining_watts", "gauge", "Asked for and not met.", labels, decision.remaining_w
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield "process_cpu_seconds_total", "counter", "User and system.", none, usage.ru_utime + usage.ru_stime
        yield "process_resident_memory_bytes", "gauge", "Now.", none, resident_bytes()


def resident_bytes() -> int:
    """Memory that this process occupies now; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * resource.getpagesize()
