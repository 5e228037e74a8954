"""Grid view and demand response."""
