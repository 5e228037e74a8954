"""What the forecasting agent's model may read."""

TOOLS = ("energy-forecast", "weather", "metered-energy", "samples")
