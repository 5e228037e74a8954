"""Hardware in the loop: plants, servers, grid, faults, and the demo's fleet."""
