"""Producer and consumer agents: they propose, the arbiter decides."""
