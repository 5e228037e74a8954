"""The first days of a site: what similar sites do, brought to its level.

A site with less than a week of readings has no spread of its own. Sites with at least two weeks lend theirs: each is scaled by the
ratio of energies over the quarter hours that both know, and weighs more the better its scaled readings agree with the new site's.
The quantiles are theirs, mixed, and wider for as long as little of the new site is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wattmesh_cloud.forecasting.model import LEVELS, Array, Model

NAME = "similar-sites"
SLOT_NS = 900_000_000_000
_SLOTS_A_DAY = 96
_OWN_SLOTS = 7 * _SLOTS_A_DAY
_LENDER_SLOTS = 14 * _SLOTS_A_DAY
_LEAST_COMMON = 4
_LENDERS = 8
_WIDEST = 1.5

Past = Mapping[int, tuple[float, float]]


def borrowed(
    own: Past, others: Mapping[str, Past], which: int, start_ns: int, slots: int, model: Model
) -> Array | None:
    """Quantiles (``slots`` × levels) from similar sites; none where the site knows enough itself, or nobody can lend.

    Args:
        own: Start of a quarter hour → load and PV of the new site, Wh.
        others: The same of the other sites.
        which: 0 for load, 1 for PV.
        start_ns: First slot.
        slots: How many.
        model: Makes the lenders' own quantiles.
    """
    mine = {slot: values[which] for slot, values in own.items() if slot < start_ns}
    if not _LEAST_COMMON <= len(mine) < _OWN_SLOTS:
        return None
    tables, weights = [], []
    for name in sorted(others):
        theirs = {slot: values[which] for slot, values in others[name].items() if slot < start_ns}
        common = sorted(set(mine) & set(theirs))
        if len(theirs) < _LENDER_SLOTS or len(common) < _LEAST_COMMON:
            continue
        a, b = np.array([mine[slot] for slot in common]), np.array([theirs[slot] for slot in common])
        if b.sum() <= 0:
            continue  # it says nothing of the level
        scale = float(a.sum() / b.sum())
        missed = float(np.abs(a - scale * b).mean() / max(a.mean(), 1e-6)) if a.sum() > 0 else 1.0
        history, first = _line(theirs, start_ns)
        table = model.predict(history, first, slots, _SLOTS_A_DAY)
        if np.isnan(table).any():
            continue
        tables.append(scale * table)
        weights.append(1 / (0.1 + missed))
    if not tables:
        return None
    best = np.argsort(weights)[::-1][:_LENDERS]
    share = np.array([weights[at] for at in best])
    mixed = np.tensordot(share / share.sum(), np.stack([tables[at] for at in best]), 1)
    middle = mixed[:, len(LEVELS) // 2 : len(LEVELS) // 2 + 1]
    wider = 1 + (_WIDEST - 1) * (1 - len(mine) / _OWN_SLOTS)
    result: Array = np.maximum(np.sort(middle + (mixed - middle) * wider, axis=1), 0.0)
    return result


def _line(values: Mapping[int, float], start_ns: int) -> tuple[Array, int]:
    """Consecutive slots up to the start, NaN for gaps, and the first one's place in the day."""
    first = max(min(values), start_ns - 30 * _SLOTS_A_DAY * SLOT_NS)
    line = np.full((start_ns - first) // SLOT_NS, np.nan)
    for slot, value in values.items():
        if slot >= first:
            line[(slot - first) // SLOT_NS] = value
    return line, first // SLOT_NS % _SLOTS_A_DAY
