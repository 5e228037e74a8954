"""What the consumer's model may read."""

TOOLS = ("energy-forecast", "metered-energy", "samples", "decisions", "settlements", "alarms")
