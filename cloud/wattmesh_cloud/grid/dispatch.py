"""Which offers are taken: the least that an event can cost, exactly.

The cost of a choice is the sum of price times power of what is taken, plus the worth of what is missing times the power that is
missing. Where every part may be taken in part, the merit order is exact: the cheapest first, the last in part. Where one is all or
nothing it is a knapsack; it is solved as a mixed-integer programme by HiGHS (Huangfu and Hall 2018, doi 10.1007/s12532-017-0130-5),
to its optimum.

Fairness: among parts of the same price (to within a band) those come first whose sites were called least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.grid import DemandResponseOffer, FlexibilitySource, OfferPart

_FAIR = 1e-6
"""Weight of fairness against a tick: it decides between equals and buys nothing."""
_PARTS_AT_MOST = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A part of a site's offer, as a magnitude."""

    site_id: str
    power_w: int
    price_ticks: int
    divisible: bool = True
    called: float = 0.0
    """How much the site was called of late, in hours: less comes first among equal prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is taken."""

    power_w: Mapping[str, int]
    """By site, a magnitude; only those of which something is taken."""
    parts: tuple[int, ...]
    """Of each candidate."""
    missing_w: int
    over_w: int
    cost: int
    """Sum of price times power, in tick · W."""


def candidates(
    offers: Iterable[DemandResponseOffer], direction: int, *, most_ticks: int, called: Mapping[str, float] | None = None
) -> list[Candidate]:
    """The parts of offers that go the event's way at no more than its price.

    Args:
        offers: As they came; parts that do not sum to what is offered are not believed, and the offer counts as one part.
        direction: -1 for less import, 1 for more.
        most_ticks: The event's price.
        called: Hours that each site was called of late.
    """
    found = []
    for offer in sorted(offers, key=lambda one: one.site_id):
        parts: Sequence[OfferPart] = offer.parts
        if not parts or sum(part.power_w for part in parts) != offer.offered_w:
            parts = (
                OfferPart(source=FlexibilitySource.BATTERY, power_w=offer.offered_w, price_ticks=offer.price_ticks),
            )
        found += [
            Candidate(
                site_id=offer.site_id,
                power_w=direction * part.power_w,
                price_ticks=part.price_ticks,
                divisible=part.divisible,
                called=(called or {}).get(offer.site_id, 0.0),
            )
            for part in parts
            if direction * part.power_w > 0 and part.price_ticks <= most_ticks
        ]
    return found[:_PARTS_AT_MOST]


def least_cost(
    target_w: int, parts: Sequence[Candidate], *, missing_ticks: int, over_w: int = 0, site_most_w: int | None = None
) -> Choice:
    """The cheapest choice.

    Args:
        target_w: Wanted, a magnitude.
        parts: What there is.
        missing_ticks: Worth of power that is missing, a W; above every price, else too little is bought.
        over_w: By how much the target may be passed, where whole parts do not fit.
        site_most_w: Largest share of one site; none for no limit.

    Raises:
        ConfigurationError: A part is all or nothing, and the extra ``optimise`` (highspy) is not installed.
    """
    if target_w <= 0 or not parts:
        return Choice(power_w={}, parts=(0,) * len(parts), missing_w=max(0, target_w), over_w=0, cost=0)
    if all(part.divisible for part in parts):
        taken = _merit_order(target_w, parts, site_most_w)
    else:
        taken = _mixed_integer(target_w, parts, missing_ticks, over_w, site_most_w)
    by_site: dict[str, int] = {}
    for part, power in zip(parts, taken, strict=True):
        if power:
            by_site[part.site_id] = by_site.get(part.site_id, 0) + power
    total = sum(taken)
    return Choice(
        power_w=by_site,
        parts=tuple(taken),
        missing_w=max(0, target_w - total),
        over_w=max(0, total - target_w),
        cost=sum(part.price_ticks * power for part, power in zip(parts, taken, strict=True)),
    )


def _merit_order(target_w: int, parts: Sequence[Candidate], site_most_w: int | None) -> list[int]:
    order = sorted(range(len(parts)), key=lambda at: (parts[at].price_ticks, parts[at].called, parts[at].site_id, at))
    taken, left = [0] * len(parts), target_w
    of_site: dict[str, int] = {}
    for at in order:
        part = parts[at]
        room = part.power_w if site_most_w is None else min(part.power_w, site_most_w - of_site.get(part.site_id, 0))
        taken[at] = max(0, min(left, room))
        of_site[part.site_id] = of_site.get(part.site_id, 0) + taken[at]
        left -= taken[at]
    return taken


def _mixed_integer(
    target_w: int, parts: Sequence[Candidate], missing_ticks: int, over_w: int, site_most_w: int | None
) -> list[int]:
    """Columns: the power of each part (its share, for whole ones), what is missing, what is over."""
    try:
        import highspy
    except ImportError as error:
        raise ConfigurationError(
            "an offer has a part that is all or nothing: pip install wattmesh[optimise] to dispatch it"
        ) from error
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("threads", 1)
    model.setOptionValue("mip_rel_gap", 0.0)
    model.setOptionValue("mip_abs_gap", 0.0)
    columns: list[tuple[int, float]] = []
    for at, part in enumerate(parts):
        price = part.price_ticks + _FAIR * part.called
        if part.divisible:
            model.addVar(0.0, float(part.power_w))
            model.changeColCost(at, price)
            columns.append((at, 1.0))
        else:
            model.addVar(0.0, 1.0)
            model.changeColIntegrality(at, highspy.HighsVarType.kInteger)
            model.changeColCost(at, price * part.power_w)
            columns.append((at, float(part.power_w)))
    missing, over = len(parts), len(parts) + 1
    model.addVar(0.0, float(target_w))
    model.changeColCost(missing, float(missing_ticks))
    model.addVar(0.0, float(max(0, over_w)))
    _row(model, target_w, target_w, [*columns, (missing, 1.0), (over, -1.0)])
    if site_most_w is not None:
        for site in sorted({part.site_id for part in parts}):
            _row(model, 0, site_most_w, [columns[at] for at, part in enumerate(parts) if part.site_id == site])
    model.run()
    if (
        model.getModelStatus() != highspy.HighsModelStatus.kOptimal
    ):  # what is missing is always a way out: never infeasible
        raise AssertionError(f"the dispatch has no optimum: {model.getModelStatus()}")
    values = model.getSolution().col_value
    return [round(values[at] * width) for at, width in columns]


def _row(model: object, low: float, high: float, entries: Sequence[tuple[int, float]]) -> None:
    import numpy as np

    indices = np.array([at for at, _ in entries], dtype=np.int32)
    values = np.array([value for _, value in entries], dtype=np.float64)
    model.addRow(float(low), float(high), len(entries), indices, values)  # type: ignore[attr-defined]  # a Highs
