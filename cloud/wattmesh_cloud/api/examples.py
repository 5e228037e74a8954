"""Examples for the description's answers, made from the fields: their own examples first, then one vocabulary of names and units.

A text field that neither has an example nor stands in the vocabulary is a mistake of ours; it raises when the description is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TIME_NS = 1_662_055_200_000_000_000
_WORDS: Mapping[str, Any] = {
    "csrf": "Zm9yIHRoZSBwYWdl", "name": "ann", "tenant": "fleet", "id": "a-1", "token": "shown once", "next": f"{_TIME_NS}.1",
    "plan_source": "plan", "time_zone": "Europe/Madrid", "software": "0.9.0", "market_area": "area-1", "agents": "gateway",
    "kind": "battery", "template": "sunspec-storage", "model": "seasonal-quantiles-28d", "site_id": "home-1", "site": "home-1",
    "source": "policy", "reasons": "load: gap: 2 of 48 h", "asset_id": "battery", "decided_by": "user:bob",
    "limited_by": "import limit", "conflicts": "export limit against reserve", "method": "register", "participant_id": "home-1",
    "severity": "warning", "text": "the meter is silent", "acknowledged_by": "ann", "cause": "loss of generation",
    "event_id": "event-1", "device_id": "battery", "device": "battery", "state": "waiting", "control": "min_soc_percent",
    "area": "area-1", "currency": "EUR", "mechanism": "call", "halted": "user:ann: by hand", "status": "accepted",
    "buyer_id": "home-1", "seller_id": "home-2", "largest": "home-1", "participant": "home-1", "suspended": "credit limit",
    "client_order_id": "desk-1", "reason": "storm warning", "detail": "done", "area_id": "area-1",
    "left_out": "state of charge unknown", "element": "feeder-1", "level": "expected", "confirm": "RESUME", "mode": "shortage",
    "address": "demo/cloud/forecasting", "agent": "producer", "rationale": "storm warning", "subject": "home-1",
    "origin": "policy", "outcome": "done", "guard": "rate", "model_detail": "agreed", "tools": "readings", "actor": "user:ann",
    "note": "seen", "question": "Why did home-1 charge last night?", "approval": "approval-1",
    "citations": "producer-1662055200-1", "version": "0.9.0", "session": "1f4c", "requests": "Strategy",
    "title": "Week of home-1",
    "baselines": "no battery: load less production", "asked_by": "user:ann", "files": "report.pdf",
    "result": "area-1 takes orders again", "openadr": "https://vtn.example.org", "public_url": "https://fleet.example.org",
    "action": "command.market.halt", "last_hash": "9f86d081884c7d65", "fault": "entry 7 does not follow entry 6",
}  # fmt: skip
"""By the field's name."""
_SPECIAL: Mapping[str, Any] = {
    "Page_SiteRow_.next": "home-1", "DecisionRow.decided_by": "plan", "FrequencyEventRow.kind": "under_frequency",
    "WarningRow.kind": "loading", "AgentAnswer.kind": "why", "JobRow.kind": "report", "CommandKind.kind": "market.resume",
    "CommandKind.title": "Resume the market", "CommandRow.kind": "market.resume", "Plan.source": "plan",
    "ResponseRow.source": "operator", "ResponseRow.state": "settled", "DeviceRow.state": "ready", "DeviceRow.points": 12,
    "AgentAnswer.source": "template",
    "AgentRecord.model": "absent", "SlotRow.status": "closed", "GridStatusRow.status": "normal", "Asset.id": "battery",
    "LabScenario.id": "meter-silent", "LabScenario.title": "The meter is silent", "EmergencyAsked.confirm": "SHORTAGE",
    "KeptReport.name": "home-1-2022-09-01.pdf", "LabDevice.requests": 420,
    "FrequencySamplesAnswer.rows": [1_662_055_200_000, 49.98, -0.01],
    "CardRow.name": "gateway",
}  # fmt: skip
"""By model and field, where the name alone says too little."""
_UNITS: Mapping[str, float] = {
    "_ns": _TIME_NS, "_ticks": 1800, "_wh": 250, "_w": 1500, "_percent": 55, "_hz": 49.98, "_hz_per_s": -0.12, "_units": 45_000,
    "_pu": 0.97, "_deg": 3.5, "_ms": 12.5, "_mb": 85.5, "_share": 0.8, "_s": 900, "_price": 0.2,
}  # fmt: skip
_FIGURES: Mapping[str, float] = {
    "nominal_hz": 50, "nadir_hz": 49.71, "detection_to_write_ns": 38_000_000, "levels": 0.5, "values": 250, "points": 1500,
    "hhi": 0.4,
    "efficiency": 0.93, "availability": 0.998, "loading": 0.6, "progress": 0.5, "expires_in_s": 90, "lead_s": 3600,
    "ledger_sum_units": 0, "value": 1.08, "limit": 1.0, "pv_w": -1500, "import_limit_w": 8000, "export_limit_w": 4000,
    "rated_power_w": 5000, "rated_energy_wh": 10_000, "revision": 0, "failed_polls": 0, "dead_letters": 0, "largest_share": 0.6,
    "remaining_w": 0, "alarms": 0, "refusals": 0, "open": 1800, "high": 1900, "low": 1700, "close": 1800, "number": 1,
    "stage": 1,
    "end_ns": _TIME_NS + 900_000_000_000, "ends_ns": _TIME_NS + 900_000_000_000, "expires_ns": _TIME_NS + 900_000_000_000,
}  # fmt: skip
_LATER = frozenset({"end_ns", "ends_ns", "expires_ns"})
"""The example of every time would end them as they begin."""
_ABSENT = frozenset({
    "AlarmRow.cleared_ns", "ApprovalRow.actor", "ApprovalRow.decided_ns", "AuditVerdict.fault", "CommandRow.decided_by",
    "CommandRow.decided_ns", "CommandRow.result", "MarketSummary.halted", "OrderOutcome.reason", "PositionRow.suspended",
})  # fmt: skip
"""None where all is as it should be, or not yet decided."""
_FALSE = frozenset({"disabled", "disturbed", "drill", "substituted"})
_KEYS: Mapping[str, str] = {
    "points": "active_power_w", "rejects": "bad_price", "ingest": "records", "messages": "requests", "results": "home-1",
}  # fmt: skip
"""Of objects whose keys are data; else a site."""


def add_examples(description: dict[str, Any]) -> None:
    """Give every JSON answer that tells of success an example, in place.

    Raises:
        LookupError: A text field has no example and the vocabulary does not know its name.
    """
    schemas = description.get("components", {}).get("schemas", {})
    for methods in description["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                content = answer.get("content", {}).get("application/json")
                if status.startswith("2") and content and "schema" in content:
                    content.setdefault(
                        "example", _example(content["schema"], schemas, operation["operationId"], "area")
                    )


def _example(schema: Mapping[str, Any], schemas: Mapping[str, Any], model: str, field: str) -> Any:
    if f"{model}.{field}" in _ABSENT:
        return None
    if special := _SPECIAL.get(f"{model}.{field}"):
        return [special] if schema.get("type") == "array" else special
    if (given := schema.get("examples")) and field not in _LATER:
        return given[0]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _example(schemas[name], schemas, name, field)
    if "anyOf" in schema:
        some = next((one for one in schema["anyOf"] if one.get("type") != "null"), {"type": "null"})
        return _example(some, schemas, model, field)
    if "properties" in schema:
        return {name: _example(one, schemas, model, name) for name, one in schema["properties"].items()}
    match schema.get("type"):
        case "array":
            return [_example(schema["items"], schemas, model, field)]
        case "object":
            values = schema.get("additionalProperties")
            return (
                {_KEYS.get(field, "home-1"): _example(values, schemas, model, field)}
                if isinstance(values, dict)
                else {}
            )
        case "string":
            return schema["enum"][0] if "enum" in schema else _word(model, field)
        case "boolean":
            return field not in _FALSE
        case "integer" | "number" as kind:
            figure = _figure(field)
            return round(figure) if kind == "integer" else float(figure)
        case _:
            return None


def _word(model: str, field: str) -> str:
    if field not in _WORDS:
        raise LookupError(
            f"{model}.{field} has no example: give its field one, or name it in wattmesh_cloud.api.examples"
        )
    return str(_WORDS[field])


def _figure(field: str) -> float:
    if field in _FIGURES:
        return _FIGURES[field]
    return next(
        (value for unit, value in sorted(_UNITS.items(), key=lambda one: -len(one[0])) if field.endswith(unit)), 3
    )
