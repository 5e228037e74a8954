"""What the grid optimisation agent's model may read."""

TOOLS = ("grid-status", "demand-response", "frequency-events", "alarms", "energy-forecast", "metered-energy")
