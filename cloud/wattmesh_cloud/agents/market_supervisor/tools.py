"""What the market supervisor's model may read; the other four agents are tools of it, too."""

TOOLS = (
    "cleared-slots",
    "trades",
    "settlements",
    "metered-energy",
    "energy-forecast",
    "grid-status",
    "demand-response",
)
