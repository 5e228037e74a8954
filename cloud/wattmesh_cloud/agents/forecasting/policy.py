"""The forecasting agent's policy: learn anew where errors have grown, warn where readings or forecasts stay away."""

from __future__ import annotations

from wattmesh_cloud.agents.proposals import ChooseModel, Proposal, RaiseAlarm, Retrain
from wattmesh_cloud.agents.situations import ForecastSituation

GROWN = 1.5
AGAIN_S = 7 * 86_400.0
ABSENT_S, STALE_S = 2 * 3600.0, 2 * 3600.0
CLEARLY_BETTER, ENOUGH_SLOTS = 0.9, 192


def policy(situation: ForecastSituation) -> list[Proposal]:
    """See the module."""
    site = situation.site_id
    found: list[Proposal] = []
    reading, issued = situation.reading_age_s, situation.issued_age_s
    if reading is not None and reading > ABSENT_S:
        why = f"no metered quarter hour for {reading / 3600:.1f} h: its forecasts rest on older days"
        found.append(RaiseAlarm(subject=site, severity="warning", rationale=why))
        return found  # nothing new to learn from
    if issued is not None and issued > STALE_S:
        why = f"the newest forecast is {issued / 3600:.1f} h old"
        found.append(RaiseAlarm(subject=site, severity="warning", rationale=why))
    bad = {quantity: why for quantity, why in sorted(situation.widened.items()) if why}
    if bad:
        quantity, reasons = next(iter(bad.items()))
        why = f"readings of {quantity} are left out: {', '.join(reasons)}"[:400]
        found.append(RaiseAlarm(subject=site, severity="info", rationale=why))
    grown = retrain_ground(situation)
    if grown is not None and not bad:
        found.append(Retrain(site_id=site, rationale=grown))
    for quantity in sorted(situation.losses):
        better = better_model(situation, quantity)
        if better is not None:
            name, why = better
            found.append(ChooseModel(site_id=site, quantity=quantity, model=name, rationale=why))  # type: ignore[arg-type]
    return found


def retrain_ground(situation: ForecastSituation) -> str | None:
    """Why the model should learn anew; none where its errors are the usual ones, or it did so lately."""
    if situation.retrained_s is not None and situation.retrained_s < AGAIN_S:
        return None
    for quantity, (day, week) in sorted(situation.error_wh.items()):
        if week > 0 and day > GROWN * week:
            return f"the error of {quantity} was {day:.0f} Wh in the last day, {week:.0f} Wh in the week"
    return None


def better_model(situation: ForecastSituation, quantity: str) -> tuple[str, str] | None:
    """A model that was clearly better than the one in charge over two days, with the figures."""
    losses, now = situation.losses.get(quantity, {}), situation.in_charge.get(quantity)
    if now is None or now not in losses or situation.scored_slots.get(quantity, 0) < ENOUGH_SLOTS:
        return None
    best = min(losses, key=losses.__getitem__)
    if best == now or losses[best] > CLEARLY_BETTER * losses[now]:
        return None
    return best, f"{best} lost {losses[best]:.1f} Wh a slot, {now} {losses[now]:.1f} Wh"
