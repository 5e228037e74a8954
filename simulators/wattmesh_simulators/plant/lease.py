"""A setpoint that does not outlive whoever gave it."""

from __future__ import annotations

NS_PER_S = 1_000_000_000


class Lease:
    """A setpoint that falls back to a value of its own when nobody renews it in time."""

    def __init__(self, fallback: float) -> None:
        self.fallback = fallback
        self.value = fallback
        self.enabled = True
        self.timeout_s = 0.0
        self.reverted = 0
        self._renewed_ns = 0

    def renew(self, now_ns: int) -> None:
        """Somebody wrote: the time starts anew."""
        self._renewed_ns = now_ns

    def ends_ns(self) -> int | None:
        """When it runs out; none for never."""
        if not self.enabled or self.timeout_s <= 0 or self.value == self.fallback:
            return None
        return self._renewed_ns + round(self.timeout_s * NS_PER_S)

    def current(self, now_ns: int) -> float:
        """The value in force."""
        if not self.enabled:
            return self.fallback
        if self.timeout_s > 0 and now_ns - self._renewed_ns > self.timeout_s * NS_PER_S:
            if self.value != self.fallback:
                self.reverted += 1
            self.value = self.fallback
        return self.value
