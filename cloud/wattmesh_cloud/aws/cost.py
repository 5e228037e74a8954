"""What a site costs a month in AWS IoT Core, and what the fleet's data plane costs, by list prices.

Prices are those of the facts file of 2026 (us-east-1, first tier, without the free tier); only an account's own bill proves them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DAYS = 30
ALARMS = 7
"""In ``services.yaml``."""
SECONDS = DAYS * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars."""

    message: float = 1.00e-6
    """A message through the broker, each 5 kB begun. None by Basic Ingest."""
    rule: float = 0.15e-6
    """A rule started, each 5 kB begun."""
    action: float = 0.15e-6
    """An action done, each 5 kB begun."""
    connection_minute: float = 0.08e-6
    metered_bytes: int = 5 * 1024
    sqs_request: float = 0.40e-6
    """Each 64 KB begun; send, receive and delete are one each, the latter two for ten messages."""
    lambda_request: float = 0.20e-6
    lambda_gb_second: float = 1.33334e-5
    """arm64."""
    dynamodb_write_unit: float = 0.625e-6
    """On demand, 1 KB; a transaction takes two."""
    dynamodb_gb_month: float = 0.25
    s3_gb_month: float = 0.023
    s3_put: float = 5.0e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLoad:
    """What one site sends."""

    points: int = 200
    period_s: float = 1.0
    batch_s: float = 10.0
    batch_bytes: int = 4096
    """Of one frame, compressed; measured, see the tests."""
    records_a_day: int = 2 * 96
    """Batches of records (interval energies, decisions, events) beside the samples."""
    requests_a_day: int = 4 * 96 + 24
    """Messages through the broker both ways: orders, commitments, forecasts, strategies and their answers."""
    acknowledge_s: float = 10.0
    """Between two acknowledgements; each is a request and an answer, and each of these goes in and out: four messages."""
    status_s: float = 10.0
    """Between two status events: in and out."""


AS_BUILT = SiteLoad()
"""``messaging.telemetry: live``, the default: batches and status of 10 s, an acknowledgement a batch."""
ECONOMY = SiteLoad(batch_s=60.0, batch_bytes=20_400, records_a_day=150, acknowledge_s=86_400 / 130, status_s=600.0)
"""``messaging.telemetry: economy``: batches of a minute, acknowledged every 20 min; records, which are few, when they come again.
A test counts a day of the gateway's own uplink and the function's own handler and compares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCost:
    """Dollars a month."""

    rules: float
    """Telemetry: rules and actions."""
    messages: float
    """Telemetry: the broker; nothing by Basic Ingest."""
    connection: float
    control: float
    """Acknowledgements, requests, answers and status through the broker."""

    @property
    def telemetry(self) -> float:
        """Messages, rules and actions of what is measured."""
        return self.rules + self.messages

    @property
    def total(self) -> float:
        """All of IoT Core, with what controls the site."""
        return self.telemetry + self.connection + self.control


def site_month(load: SiteLoad, prices: Prices | None = None, *, basic_ingest: bool = True) -> SiteCost:
    """IoT Core's share of a site."""
    price = prices or Prices()
    units = math.ceil(load.batch_bytes / price.metered_bytes)
    batches = SECONDS / load.batch_s
    metered = batches * units + load.records_a_day * DAYS
    control = SECONDS / load.acknowledge_s * 4 + load.requests_a_day * DAYS + 2 * SECONDS / load.status_s
    return SiteCost(
        rules=metered * (price.rule + price.action),
        messages=0.0 if basic_ingest else metered * price.message,
        connection=SECONDS / 60 * price.connection_minute,
        control=control * price.message,
    )


def fixed_month(standby: bool) -> dict[str, float]:
    """What a deployment costs whatever its sites do: its key, alarms and dashboard, in both regions where there are two."""
    regions = 2 if standby else 1
    return {"key": 1.00 * regions, "alarms": 0.10 * ALARMS * regions, "dashboard": 3.00 * regions}


def fleet_month(sites: int, load: SiteLoad, prices: Prices | None = None) -> dict[str, float]:
    """The data plane for ``sites`` of this load, by service, with its sum."""
    price = prices or Prices()
    one = site_month(load, price)
    batches = sites * (SECONDS / load.batch_s + load.records_a_day * DAYS)
    # Frame, counts and day in a transaction, and the index, which has no frame.
    frame_units = math.ceil(load.batch_bytes / 1024) * 2 + 2 * 2 + 1
    samples = sites * load.points * SECONDS / load.period_s
    raw_gb = sites * SECONDS / load.batch_s * load.batch_bytes / 1e9
    costs = {
        "iot": sites * one.total,
        "sqs": batches * price.sqs_request * (1 + 2 / 10),
        "lambda": batches / 10 * price.lambda_request + batches * 0.02 * 0.5 * price.lambda_gb_second,
        "dynamodb": batches * frame_units * price.dynamodb_write_unit + raw_gb * 7 / DAYS * price.dynamodb_gb_month,
        "s3": samples * 1.5 / 1e9 * price.s3_gb_month + sites * DAYS * price.s3_put,
    }
    return {**costs, "total": sum(costs.values())}
