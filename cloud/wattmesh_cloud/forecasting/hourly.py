"""The cloud's forecaster of a site or of a group of sites: hourly, load, PV and net, with quantiles that are kept honest.

- Load: its square root, as the spread of consumption grows with its level, by two banks of regressions on the last four weeks,
  the last hours' errors, calendar and past weather; the average of both.
- PV: energy over what the site's own sky-clear days gave at that hour (an upper quantile of the last three weeks, so that tilt,
  azimuth and shading are in it), by a bank of regressions on the clearness of days and hours before.
- Quantiles: of what followed similar forecasts; their spread is scaled until 80 % of the last four weeks were inside.
- The gateway's seasonal quantiles get the share with which the mix would have scored best in the last four weeks, up to all of it:
  a model that has become worse loses its place by itself.

Everything at hour ``t`` is made of values before ``t``: :meth:`HourlyForecaster.add` is the only way in. What is missing stays
missing: features use a causal substitute, training leaves the hour out, and quantiles widen with the share that was missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wattmesh_cloud.forecasting.model import SeasonalQuantiles
from wattmesh_cloud.forecasting.regression import (
    HOURS,
    Array,
    Bank,
    Narrow,
    Numbers,
    Similar,
    fit_bank,
    similar_weights,
    weighted_quantiles,
)

WARM_UP_DAYS = 35
"""Before so much is known, another model has to serve."""
_BASE = 29 * HOURS
_REFIT_H = 7 * HOURS
_REPLAY_DAYS, _REPLAY_EVERY_H = 42, 5
"""Hindcasts made at a start, so that quantiles have something to stand on; five hours apart they meet every hour of the day."""
_WINDOW_H = 40 * HOURS
"""What a forecast looks back on, at most."""
_HALF_LIFE_DAYS = 120.0
_TRAIN_DAYS = 400
_PENALTY = 0.1
_CLEAR_DAYS, _CLEAR_LEVEL, _CLEAR_LEAST = 21, 0.9, 0.005
"""The clear sky: days, quantile, and the share of the year's peak below which it is night."""
_GROUPS = ((0, 3), (3, 8), (8, 24), (24, 48))
_PV_GROUPS = ((0, 1), (1, 2), (2, 4), (4, 8), (8, 24), (24, 48))
_RECORDED = (0, 1, 2, 3, 5, 8, 12, 18, 23, 30, 42)
"""Leads whose forecasts are kept; others use the nearest of these."""
_LOAD_RULE = Similar(days=42, half_life_days=14, bandwidth_h=1.5)
_PV_RATIO_RULE = Similar(days=60, half_life_days=10, bandwidth_h=0.8, bandwidth=0.08, floor=0.03)
_PV_ERROR_RULE = Similar(days=60, half_life_days=10, bandwidth_h=0.8, bandwidth=0.15, floor=0.15)
_NET_RULE = Similar(days=42, half_life_days=14, bandwidth_h=1.2)
_COVERAGE_DAYS = 28
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
"""Of the seasonal quantiles in the mix."""
_FIRST_SHARE = 0.15
_SCALE_LIMITS = (0.7, 1.6)
_FROZEN_H = 6
_SILENT_DAYS, _LEAST_DAYS = 21, 7
"""With less known of the last weeks than that a quantity is not forecast: not known is not zero."""
_SPIKE = 4.0
"""Times the largest value of the 99.5 % before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """A forecast of one quantity."""

    values: Array
    """Leads × levels, kWh an hour."""
    reasons: tuple[str, ...]
    """Why it is wider than usual; empty when nothing was wrong."""


@dataclass(slots=True)
class _Record:
    """Point forecasts as they were issued, by recorded lead and target hour, and the quantiles' centre and half width."""

    point: Array = field(default_factory=lambda: np.full((len(_RECORDED), 0), np.nan))
    scale: Array = field(default_factory=lambda: np.full((len(_RECORDED), 0), np.nan))
    low: Array = field(default_factory=lambda: np.full((len(_RECORDED), 0), np.nan))
    middle: Array = field(default_factory=lambda: np.full((len(_RECORDED), 0), np.nan))
    high: Array = field(default_factory=lambda: np.full((len(_RECORDED), 0), np.nan))

    members: Array = field(default_factory=lambda: np.full((2, 3, len(_RECORDED), 0), np.nan))
    """Learned and seasonal; low, middle and high."""
    share: float = _FIRST_SHARE
    shared_at: int = -1

    def grow(self, length: int) -> None:
        """Make room for target hours below ``length``."""
        if length <= self.point.shape[1]:
            return
        room = np.full((2, 3, len(_RECORDED), length + 24 * HOURS - self.point.shape[1]), np.nan)
        self.members = np.concatenate([self.members, room], axis=3)
        more = np.full((len(_RECORDED), length + 24 * HOURS - self.point.shape[1]), np.nan)
        for name in ("point", "scale", "low", "middle", "high"):
            setattr(self, name, np.concatenate([getattr(self, name), more], axis=1))


class HourlyForecaster:
    """See the module.

    Args:
        levels: Quantile levels, ascending, with 0.1, 0.5 and 0.9 among them.
        leads: Hours ahead, 24 or 48.
        refit_h: Hours between two fits.
        replay_every_h: Hours between two hindcasts at a start.
    """

    name = "ridge-bank-hourly"

    def __init__(
        self, levels: Sequence[float], leads: int = 24, refit_h: int = _REFIT_H, replay_every_h: int = _REPLAY_EVERY_H
    ) -> None:
        self.levels = tuple(levels)
        self.leads = leads
        self._refit_h = refit_h
        self._replay_every_h = replay_every_h
        self._low, self._middle, self._high = (_nearest(self.levels, level) for level in (0.1, 0.5, 0.9))
        self._load, self._pv = _Column(), _Column()
        self._weather = _Table(4)
        self._hour, self._weekday = _Whole(), _Whole()
        self._seasonal = SeasonalQuantiles(self.levels)
        self.unknown: dict[str, str] = {}
        """Why a quantity was left out of the last forecast."""
        self._fitted_at = -1
        self._banks: list[list[Bank]] = []
        self._pv_banks: list[Bank] = []
        self._records = {name: _Record() for name in ("load", "pv", "net")}
        self._clear = np.empty((0, HOURS))
        self._recorded = np.array([lead for lead in _RECORDED if lead < leads])
        self._nearest = np.abs(np.arange(leads)[:, None] - self._recorded[None]).argmin(axis=1)

    # -- what is known

    @property
    def known(self) -> int:
        """Hours taken in so far."""
        return len(self._load.raw)

    def add(
        self,
        load: Sequence[float] | Array,
        pv: Sequence[float] | Array,
        hour: Sequence[int] | Numbers,
        weekday: Sequence[int] | Numbers,
        weather: Array | None = None,
    ) -> None:
        """Take in finished hours, the oldest first.

        Args:
            load: kWh of each hour, NaN where it is not known.
            pv: The same for production, a positive magnitude.
            hour: Local hour of the day of each, 0 to 23.
            weekday: Local, Monday is 0.
            weather: n × 4: °C, relative humidity %, diffuse and direct irradiance W/m²; NaN where unknown; none for none at all.
        """
        self._hour.add(hour)
        self._weekday.add(weekday)
        start = self.known
        self._load.add(load)
        self._pv.add(pv)
        self._weather.add(np.full((len(load), 4), np.nan) if weather is None else weather)
        for at in range(start, self.known):
            self._load.check(at, frozen=True)
            self._pv.check(at, frozen=False)
        self._extend_clear()

    def amend(self, at: int, load: float, pv: float) -> None:
        """Put a reading that came late where a gap was."""
        for column, value in ((self._load, load), (self._pv, pv)):
            column.amend(at, value)

    def refit_soon(self) -> None:
        """Fit anew with the next forecast instead of at the end of the week."""
        if self._fitted_at >= 0:
            self._fitted_at = min(self._fitted_at, self.known - self._refit_h)

    def issue(self, hour: Sequence[int] | Numbers, weekday: Sequence[int] | Numbers) -> dict[str, Quantiles] | None:
        """Forecast the hours that follow what is known; none before the warm-up is over.

        A quantity (and with it the net) of which nearly nothing was metered for weeks is left out; see ``unknown``.

        Args:
            hour: Local hour of the day of each coming hour (``leads`` of them).
            weekday: Local weekday of each.
        """
        now = self.known
        if now < WARM_UP_DAYS * HOURS:
            return None
        hours, days = np.asarray(hour, dtype=np.int64), np.asarray(weekday, dtype=np.int64)
        if self._fitted_at < 0:
            self._replay(now)
        if self._fitted_at < 0 or now - self._fitted_at >= self._refit_h:
            self._fit(now)
        return self._issue(now, hours, days)

    # -- fitting

    def _replay(self, now: int) -> None:
        """Hindcast the last weeks as they would have been issued, for the record that quantiles are made of."""
        for at in range(max(WARM_UP_DAYS * HOURS, now - _REPLAY_DAYS * HOURS), now, self._replay_every_h):
            if self._fitted_at < 0 or at - self._fitted_at >= self._refit_h:
                self._fit(at)
            steps = at + np.arange(self.leads)
            hours = (self._hour.data[at] + np.arange(self.leads)) % HOURS
            last = min(now, at + self.leads) - at
            hours[:last] = self._hour.data[steps[:last]]  # the calendar of what has passed
            turned = (self._hour.data[at] + np.arange(self.leads)) // HOURS
            self._issue(at, hours, (self._weekday.data[at] + turned) % 7)

    def _fit(self, now: int) -> None:
        """Fit on all pairs whose target hour is over at ``now``."""
        self._fitted_at = now
        self._banks, self._pv_banks = [], []
        root = np.sqrt(np.maximum(self._load.filled.data[:now], 0.0))
        known_root = np.where(np.isfinite(self._load.raw.data[:now]), root, np.nan)
        for low, high in self._groups(_GROUPS):
            issues = np.arange(max(_BASE, now - _TRAIN_DAYS * HOURS), now - high + 1)
            banks: list[Bank] = []
            features, base = self._load_features(issues, np.arange(low, high), root)
            target = known_root[issues[:, None] + np.arange(low, high)] - base
            weights = np.repeat(0.5 ** ((now - issues) / HOURS / _HALF_LIFE_DAYS)[:, None], high - low, axis=1)
            hours = self._hour.data[issues[:, None] + np.arange(low, high)]
            flat = features.reshape(-1, features.shape[2])
            banks.append(
                fit_bank(flat, target.ravel(), weights.ravel(), hours.ravel(), bandwidth_h=2.0, penalty=_PENALTY)
            )
            for lead in range(high - low):
                banks.append(
                    fit_bank(
                        features[:, lead],
                        target[:, lead],
                        weights[:, lead],
                        hours[:, lead],
                        bandwidth_h=None,
                        penalty=_PENALTY,
                    )
                )
            self._banks.append(banks)
        for low, high in self._groups(_PV_GROUPS):
            issues = np.arange(max(_BASE, now - _TRAIN_DAYS * HOURS), now - high + 1)
            leads = np.arange(low, high)
            features, base, clear = self._pv_features(issues, leads, self._hour.data[issues[:, None] + leads])
            light = clear > self._night()
            missed = self._pv.raw.data[issues[:, None] + leads] - base
            target = np.where(light, np.clip(missed / np.maximum(clear, self._night()), -1.5, 1.5), np.nan)
            weights = 0.5 ** ((now - issues) / HOURS / _HALF_LIFE_DAYS)[:, None] * clear
            hours = self._hour.data[issues[:, None] + leads]
            self._pv_banks.append(
                fit_bank(
                    features.reshape(-1, features.shape[2]),
                    target.ravel(),
                    weights.ravel(),
                    hours.ravel(),
                    bandwidth_h=1.5,
                    penalty=3 * _PENALTY,
                )
            )

    def _groups(self, groups: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
        return [(low, min(high, self.leads)) for low, high in groups if low < self.leads]

    # -- features: rows of issues × leads; nothing at or after the issue is touched but the calendar

    def _load_features(
        self, issues: Numbers, leads: Numbers, root: Array, calendar: tuple[Array, Array] | None = None, offset: int = 0
    ) -> tuple[Narrow, Array]:
        """Features (n × leads × f) and the base (n × leads) that the regressions correct; ``root`` begins at hour ``offset``."""
        all_hours, all_weekdays = self._hour.data[offset:], self._weekday.data[offset:]
        issues = issues - offset
        n, m = len(issues), len(leads)
        shift = HOURS * (leads // HOURS)
        at = issues[:, None] + leads - shift
        last = issues[:, None] - 1
        past = np.stack([root[at - HOURS * (day + 1)] for day in range(28)])
        if calendar is None:
            target = issues[:, None] + leads
            hour, weekday = all_hours[target].astype(float), all_weekdays[target].astype(float)
        else:
            hour, weekday = calendar
        weekend = weekday >= 5
        fading = 0.5 ** (np.arange(21) / 4)
        base = np.tensordot(fading / fading.sum(), past[:21], 1)
        alike = np.stack([all_weekdays[at - HOURS * (day + 1)] >= 5 for day in range(21)]) == weekend * np.ones(
            (n, m), dtype=bool
        )
        kind = alike * (0.5 ** (np.arange(21) / 7))[:, None, None]
        same_kind = (past[:21] * kind).sum(axis=0) / kind.sum(axis=0)

        def around(lag: int) -> Array:
            result: Array = (root[at - lag - 1] + root[np.minimum(at - lag + 1, last)]) / 2
            return result

        sums = np.concatenate([[0.0], np.cumsum(root)])
        usual = np.concatenate(
            [np.zeros(168), np.mean([root[168 - 24 * d : len(root) - 24 * d] for d in range(1, 8)], 0)]
        )
        missed = np.concatenate([[0.0], np.cumsum(np.where(np.arange(len(root)) >= 168, root - usual, 0.0))])
        temperature = self._weather.filled[offset : offset + len(root), 0]
        warm = np.concatenate([[0.0], np.cumsum(temperature)])
        single = [(missed[issues] - missed[issues - back]) / back for back in (1, 2, 3, 6, 12, 24, 48, 72)]
        single += [root[issues - 1], root[issues - 2], root[issues - 3]]
        single += [
            (sums[issues - a] - sums[issues - b]) / (b - a) for a, b in ((0, 24), (0, 72), (0, 168), (0, 672), (24, 48))
        ]
        means = [(warm[issues] - warm[issues - back]) / back for back in (24, 72, 168)]
        single += [temperature[issues - 1], *means, np.maximum(temperature[issues - 1] - 22, 0)]
        single += [np.maximum(means[0] - 20, 0), np.maximum(means[1] - 20, 0)]
        columns = [base, same_kind, *past[:7], past[13], past[20], past.mean(axis=0), np.median(past, axis=0)]
        columns += [past[:7].min(axis=0), past[:7].max(axis=0), past[6::7].mean(axis=0), past[:14].mean(axis=0)]
        columns += [around(24), around(48), around(168)]
        columns += [np.repeat(one[:, None], m, axis=1) for one in single]
        columns += [temperature[at - 24], temperature[at - 48], np.maximum(temperature[at - 24] - 22, 0)]
        columns += [
            weekend.astype(float) * np.ones((n, m)),
            (weekday == 5) * np.ones((n, m)),
            (weekday == 4) * np.ones((n, m)),
        ]
        turn = hour * (2 * np.pi / HOURS) * np.ones((n, m))
        columns += [np.sin(turn), np.cos(turn), np.sin(2 * turn), np.cos(2 * turn)]
        return np.stack(columns, axis=-1, dtype=np.float32, casting="same_kind"), base

    def _pv_features(self, issues: Numbers, leads: Numbers, hours: Numbers) -> tuple[Narrow, Array, Array]:
        """Features (n × leads × f), base and clear sky (n × leads), kWh."""
        m = len(leads)
        offset = max(0, int(issues.min()) - _WINDOW_H)
        clear = self._clear[issues // HOURS][np.arange(len(issues))[:, None], hours]
        days = np.arange(offset, int(issues.max())) // HOURS
        issues = issues - offset
        count = int(issues.max())
        passed = self._hour.data[offset : offset + count]
        pv, night = self._pv.filled.data[offset : offset + count], self._night()
        at = issues[:, None] + leads - HOURS * (leads // HOURS)
        light = clear > night
        safe = np.maximum(clear, night)
        past = np.stack([pv[at - HOURS * (day + 1)] for day in range(21)])
        share = np.where(light, np.clip(past / safe, 0, 1.3), 0.0)
        fading = 0.5 ** (np.arange(21) / 4)
        fading /= fading.sum()
        base = np.tensordot(fading, past, 1)
        sky = self._clear[days, passed]
        got = np.concatenate([[0.0], np.cumsum(np.where(sky > night, pv, 0.0))])
        could = np.concatenate([[0.0], np.cumsum(np.where(sky > night, sky, 0.0))])
        little = night

        def clearness(a: int, b: int) -> Array:
            result: Array = (got[issues - a] - got[issues - b] + little) / (
                could[issues - a] - could[issues - b] + little
            )
            return result

        recent = [clearness(0, back) for back in (1, 2, 3, 6, 12, 24, 48, 72, 168)] + [clearness(24, 48)]
        weather = self._weather.filled[offset : offset + count]
        temperature, humidity, diffuse, direct = (weather[:, column] for column in range(4))
        sums = np.concatenate([np.zeros((1, 4)), np.cumsum(weather, axis=0)])
        single = [*recent, humidity[issues - 1] / 100, humidity[issues - 24] / 100, temperature[issues - 1] / 20]
        single += [diffuse[issues - 1] / 300, direct[issues - 1] / 500, (sums[issues, 1] - sums[issues - 24, 1]) / 2400]
        single += [(sums[issues, 3] - sums[issues - back, 3]) / back / 200 for back in (24, 72)]
        same_day = (leads < HOURS - passed[issues - 1][:, None] - 1).astype(float)
        columns = [
            *share[:7],
            share.mean(axis=0),
            share[:14].mean(axis=0),
            share[:3].mean(axis=0),
            np.median(share, axis=0),
        ]
        columns += [share.max(axis=0), share.min(axis=0), np.tensordot(fading, share, 1)]
        columns += [np.repeat(one[:, None], m, axis=1) for one in single]
        columns += [same_day * recent[0][:, None], same_day * recent[2][:, None]]
        return np.stack(columns, axis=-1, dtype=np.float32, casting="same_kind"), base, clear

    def _night(self) -> float:
        """Clear-sky energy of an hour below which it is night; of the clear days known when the last fit was made."""
        rows = self._clear[: max(1, self._fitted_at // HOURS)]
        return max(1e-6, _CLEAR_LEAST * float(np.nanmax(rows, initial=0.0)))

    def _extend_clear(self) -> None:
        """One row a day of known hours (and one for the day under way): what the hours of the day give under a clear sky."""
        wanted = self.known // HOURS + 1
        if wanted <= len(self._clear):
            return
        rows: list[Array] = []
        for day in range(len(self._clear), wanted):
            end = day * HOURS
            start = max(0, end - _CLEAR_DAYS * HOURS)
            values, hours = self._pv.raw.data[start:end], self._hour.data[start:end]
            row = np.zeros(HOURS)
            for hour in range(HOURS):
                seen = values[(hours == hour) & np.isfinite(values)]
                if len(seen):
                    row[hour] = np.quantile(seen, _CLEAR_LEVEL)
            if not np.isfinite(values).any():  # nothing known for weeks: the sky as it was seen last
                row = rows[-1] if rows else self._clear[-1] if len(self._clear) else row
            rows.append(row)
        self._clear = np.concatenate([self._clear, np.array(rows)])

    # -- issuing

    def _issue(self, now: int, hours: Numbers, weekdays: Numbers) -> dict[str, Quantiles]:
        load = self._load_point(now, hours, weekdays)
        pv, clear = self._pv_point(now, hours)
        for record in self._records.values():
            record.grow(now + self.leads)
        safe = np.maximum(clear, self._night())
        share = np.where(clear > self._night(), pv / safe, 0.0)
        load_errors = self._after("load", now, hours, load, _LOAD_RULE, "error", np.ones(self.leads))
        load_table = np.maximum(load[:, None] + load_errors, 0.0) ** 2
        ratio = self._after("pv", now, hours, share, _PV_RATIO_RULE, "value", clear)
        error = self._after("pv", now, hours, share, _PV_ERROR_RULE, "error", clear) + share[:, None]
        pv_table = np.maximum((2 * ratio + error) / 3 * safe[:, None], 0.0)
        pv_table[clear <= self._night()] = 0.0
        middle_net = load_table[:, self._middle] - pv_table[:, self._middle]
        net_table = middle_net[:, None] + self._after(
            "net", now, hours, middle_net, _NET_RULE, "error", np.ones(self.leads)
        )
        self._note("load", now, load, np.ones(self.leads))
        self._note("pv", now, share, clear)
        self._note("net", now, middle_net, np.ones(self.leads))
        result = {}
        gaps = {"load": self._load, "pv": self._pv}
        self.unknown = {name: why for name, column in gaps.items() if (why := column.silence(now)) is not None}
        for name, table in (("load", load_table), ("pv", pv_table), ("net", net_table)):
            columns = [gaps[name]] if name in gaps else list(gaps.values())
            if any(gaps[one] in columns for one in self.unknown):
                continue
            reasons = tuple(dict.fromkeys(reason for column in columns for reason in column.reasons(now)))
            scale = self._scale(name, now)
            self._note_spread(name, now, table)
            table = self._mixed(name, now, _spread(table, self._middle, scale))
            table = _spread(table, self._middle, 1.0 + max(column.missing_share(now) for column in columns))
            result[name] = Quantiles(values=table if name == "net" else np.maximum(table, 0.0), reasons=reasons)
        return result

    def _mixed(self, name: str, now: int, learned: Array) -> Array:
        """The learned quantiles and the seasonal ones in the shares that recent skill gives them."""
        record, start = self._records[name], max(0, now - WARM_UP_DAYS * HOURS)
        load, pv = self._load.raw.data[start:now], self._pv.raw.data[start:now]
        history = load if name == "load" else pv if name == "pv" else load - pv
        seasonal = self._seasonal.predict(history, start % HOURS, self.leads, HOURS, signed=name == "net")
        if np.isnan(seasonal).any():
            return learned
        if now - record.shared_at >= HOURS:
            record.share, record.shared_at = self._best_share(name, now), now
        targets, rows = now + self._recorded, np.arange(len(self._recorded))
        for member, table in enumerate((learned, seasonal)):
            for place, column in enumerate((self._low, self._middle, self._high)):
                record.members[member, place, rows, targets] = table[self._recorded, column]
        return (1 - record.share) * learned + record.share * seasonal

    def _best_share(self, name: str, now: int) -> float:
        """The share of the seasonal quantiles with the smallest pinball loss of the last weeks, the nearer ones weighing more."""
        record, start = self._records[name], max(0, now - _COVERAGE_DAYS * HOURS)
        happened = self._happened(name, start, now)
        members = record.members[..., start:now]
        usable = np.isfinite(members).all(axis=(0, 1)) & np.isfinite(happened)
        if usable.sum() < 200:
            return _FIRST_SHARE
        ages = (now - np.arange(start, now)) / HOURS
        weights = np.where(usable, 0.5 ** (ages / 14), 0.0)
        levels = np.array([self.levels[at] for at in (self._low, self._middle, self._high)])[:, None, None]
        losses = []
        for share in _SHARES:
            off = happened - ((1 - share) * members[0] + share * members[1])
            loss = np.maximum(levels * off, (levels - 1) * off).mean(axis=0)
            losses.append(float(np.sum(np.where(usable, loss, 0.0) * weights)))
        return _SHARES[int(np.argmin(losses))]

    def shares(self) -> dict[str, float]:
        """Share of the seasonal quantiles in the mix, by quantity."""
        return {name: record.share for name, record in self._records.items()}

    def _load_point(self, now: int, hours: Numbers, weekdays: Numbers) -> Array:
        offset = max(0, now - _WINDOW_H)
        root = np.sqrt(np.maximum(self._load.filled.data[offset:now], 0.0))
        issue, result = np.array([now]), np.zeros(self.leads)
        for (low, high), banks in zip(self._groups(_GROUPS), self._banks, strict=True):
            leads = np.arange(low, high)
            calendar = (hours[None, low:high].astype(float), weekdays[None, low:high].astype(float))
            features, base = self._load_features(issue, leads, root, calendar, offset)
            smooth = banks[0].predict(features[0], hours[low:high])
            own = [
                bank.predict(features[0, i : i + 1], hours[low + i : low + i + 1])[0]
                for i, bank in enumerate(banks[1:])
            ]
            result[low:high] = np.maximum(base[0] + (smooth + np.array(own)) / 2, 0.0)
        return result

    def _pv_point(self, now: int, hours: Numbers) -> tuple[Array, Array]:
        issue, result, sky = np.array([now]), np.zeros(self.leads), np.zeros(self.leads)
        for (low, high), bank in zip(self._groups(_PV_GROUPS), self._pv_banks, strict=True):
            features, base, clear = self._pv_features(issue, np.arange(low, high), hours[None, low:high])
            light = clear[0] > self._night()
            correction = bank.predict(features[0], hours[low:high]) * clear[0]
            result[low:high] = np.where(light, np.maximum(base[0] + correction, 0.0), base[0])
            sky[low:high] = clear[0]
        return result, sky

    # -- quantiles from the record

    def _after(
        self, name: str, now: int, hours: Numbers, point: Array, rule: Similar, what: str, scale: Array
    ) -> Array:
        """Quantiles (leads × levels) of what followed similar forecasts: its ``value``, or its ``error``."""
        record = self._records[name]
        start = max(0, now - rule.days * HOURS)
        issued, scales = record.point[:, start:now], record.scale[:, start:now]
        happened = self._actual(name, start, now)
        passed = self._hour.data[start:now]
        age = (now - np.arange(start, now)).astype(float)
        table = np.zeros((self.leads, len(self.levels)))
        for lead in range(self.leads):
            if scale[lead] <= 0:
                continue
            row = int(self._nearest[lead])
            apart = np.abs(passed - hours[lead])
            apart = np.minimum(apart, HOURS - apart)
            near = (apart <= 2) & np.isfinite(issued[row]) & np.isfinite(happened)
            if name == "pv":
                near &= scales[row] > self._night()
            if near.sum() < 5:
                width = 0.5 * max(abs(float(point[lead])), 1e-3)
                spread = (np.asarray(self.levels) - 0.5) * 2 * width
                table[lead] = spread if what == "error" else point[lead] + spread
                continue
            then = issued[row][near]
            real = happened[near] / scales[row][near]
            weights = similar_weights(rule, age[near], apart[near].astype(float), then - point[lead])
            if weights.sum() <= 1e-12:
                weights = np.ones(len(then))
            table[lead] = weighted_quantiles(real - then if what == "error" else real, weights, self.levels)
        return table

    def _actual(self, name: str, start: int, end: int) -> Array:
        """What happened, in the terms of the record: the root of load, PV, net."""
        load, pv = self._load.raw.data[start:end], self._pv.raw.data[start:end]
        if name == "load":
            result: Array = np.sqrt(np.maximum(load, 0.0))
            return result
        return pv if name == "pv" else load - pv

    def _happened(self, name: str, start: int, end: int) -> Array:
        """What happened, kWh."""
        actual = self._actual(name, start, end)
        return actual**2 if name == "load" else actual

    def _note(self, name: str, now: int, point: Array, scale: Array) -> None:
        record, targets = self._records[name], now + self._recorded
        rows = np.arange(len(self._recorded))
        record.point[rows, targets], record.scale[rows, targets] = point[self._recorded], scale[self._recorded]

    def _note_spread(self, name: str, now: int, table: Array) -> None:
        record, targets = self._records[name], now + self._recorded
        rows, kept = np.arange(len(self._recorded)), table[self._recorded]
        record.low[rows, targets], record.middle[rows, targets] = kept[:, self._low], kept[:, self._middle]
        record.high[rows, targets] = kept[:, self._high]

    def _scale(self, name: str, now: int) -> float:
        """How much the spread has to grow for 80 % of the last weeks to be inside (split conformal on the normalised error)."""
        record, start = self._records[name], max(0, now - _COVERAGE_DAYS * HOURS)
        happened = self._happened(name, start, now)
        low, middle, high = record.low[:, start:now], record.middle[:, start:now], record.high[:, start:now]
        above, below = (
            (happened - middle) / np.maximum(high - middle, 1e-9),
            (middle - happened) / np.maximum(middle - low, 1e-9),
        )
        scores = np.where(happened >= middle, above, below)
        usable = np.isfinite(scores) & (high - low > 1e-6)
        if usable.sum() < 200:
            return 1.0
        return float(np.clip(np.quantile(scores[usable], 0.8), *_SCALE_LIMITS))


def _spread(table: Array, middle: int, factor: float) -> Array:
    """Quantiles (leads × levels) pulled away from their median."""
    centre = table[:, middle][:, None]
    return np.sort(centre + (table - centre) * factor, axis=1)


def _nearest(levels: Sequence[float], wanted: float) -> int:
    return min(range(len(levels)), key=lambda index: abs(levels[index] - wanted))


class _Grown:
    """Values that grow by appending, in one array with room to spare."""

    def __init__(self) -> None:
        self._room = np.empty(1024)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def data(self) -> Array:
        """What is in it, a view."""
        return self._room[: self._count]

    def append(self, value: float) -> None:
        """One more."""
        if self._count == len(self._room):
            self._room = np.concatenate([self._room, np.empty(len(self._room))])
        self._room[self._count] = value
        self._count += 1


class _Whole:
    """Whole numbers that grow."""

    def __init__(self) -> None:
        self.data: Numbers = np.empty(0, dtype=np.int64)

    def add(self, values: Sequence[int] | Numbers) -> None:
        """More of them."""
        self.data = np.concatenate([self.data, np.asarray(values, dtype=np.int64)])


class _Table:
    """Weather: rows as they came, and with gaps filled by the last known value (0 before there was any)."""

    def __init__(self, columns: int) -> None:
        self.filled = np.zeros((0, columns))

    def add(self, rows: Array) -> None:
        """More rows."""
        rows = np.array(rows, dtype=float)
        last = self.filled[-1] if len(self.filled) else np.zeros(rows.shape[1])
        for row in rows:
            row[~np.isfinite(row)] = last[~np.isfinite(row)]
            last = row
        self.filled = np.concatenate([self.filled, rows])


class _Column:
    """A metered quantity: what is trusted (``raw``, NaN elsewhere), and the same with causal substitutes (``filled``)."""

    def __init__(self) -> None:
        self.raw = _Grown()
        self.filled = _Grown()
        self._why: dict[int, str] = {}
        self._pending: list[float] = []
        self._limit, self._limit_at = np.inf, -1

    def add(self, values: Sequence[float] | Array) -> None:
        """Values as metered; each is then looked at by :meth:`check`."""
        for value in values:
            self.raw.append(float(value))
            self.filled.append(float(value))

    def amend(self, at: int, value: float) -> None:
        """A late value, only where there is a gap and if it can be true."""
        if 0 <= at < len(self.raw) and self._why.get(at) == "gap" and 0 <= value <= self._limit:
            self.raw.data[at] = self.filled.data[at] = value
            del self._why[at]

    def check(self, at: int, *, frozen: bool) -> None:
        """Drop what cannot be true and put a substitute, seen from the hour itself and what was before."""
        data = self.raw.data
        value = data[at]
        if not np.isfinite(value) or value < 0:
            self._drop(at, "gap")
        elif value > self._plausible(at):
            self._drop(at, "spike")
        elif frozen and value > 0 and at >= _FROZEN_H and bool(np.all(self.filled.data[at - _FROZEN_H : at] == value)):
            self._drop(at, "frozen meter")
            self.filled.data[at] = value  # so that a longer freeze is still seen as one
            return
        if not np.isfinite(data[at]):
            self.filled.data[at] = self._substitute(at)

    def _plausible(self, at: int) -> float:
        if at - self._limit_at >= HOURS or self._limit_at < 0:
            known = self.raw.data[max(0, at - 60 * HOURS) : at]
            known = known[np.isfinite(known)]
            enough = len(known) >= 14 * HOURS
            self._limit = _SPIKE * float(np.quantile(known, 0.995)) + 1e-9 if enough and known.max() > 0 else np.inf
            self._limit_at = at
        return self._limit

    def _drop(self, at: int, why: str) -> None:
        self.raw.data[at] = np.nan
        self._why[at] = why

    def _substitute(self, at: int) -> float:
        """The mean of the same hour of the last known days; where there are none, what was put there the day before."""
        places = np.arange(at - HOURS, max(-1, at - 15 * HOURS), -HOURS)
        same = self.raw.data[places] if len(places) else np.empty(0)
        same = same[np.isfinite(same)]
        if len(same):
            return float(same.mean())
        if at >= HOURS:
            return float(self.filled.data[at - HOURS])  # after two weeks without: as it was last taken to be
        everything = self.raw.data[:at]
        everything = everything[np.isfinite(everything)]
        return float(everything.mean()) if len(everything) else 0.0

    def silence(self, now: int) -> str | None:
        """Why nothing can be said of a quantity: too little of the last weeks is known; none where enough is."""
        known = np.isfinite(self.raw.data[max(0, now - _SILENT_DAYS * HOURS) : now])
        if known.sum() >= _LEAST_DAYS * HOURS:
            return None
        return f"unknown: {known.sum() // HOURS} days of readings in {_SILENT_DAYS}"

    def missing_share(self, now: int) -> float:
        """Of the last two days, and of the last two weeks on top."""
        spans = (self.raw.data[max(0, now - back) : now] for back in (48, 14 * HOURS))
        return float(sum(np.mean(~np.isfinite(span)) for span in spans))

    def reasons(self, now: int) -> tuple[str, ...]:
        """What was wrong in the last two days."""
        found = [self._why[at] for at in range(max(0, now - 48), now) if at in self._why]
        return tuple(f"{why}: {found.count(why)} of 48 h" for why in dict.fromkeys(found))
