"""What the producer's model may read."""

TOOLS = ("energy-forecast", "weather", "metered-energy", "decisions", "settlements", "cleared-slots")
