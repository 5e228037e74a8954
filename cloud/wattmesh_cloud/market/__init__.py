"""The local energy market: one deterministic writer a market area."""
