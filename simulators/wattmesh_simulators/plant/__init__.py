"""Device and grid physics."""
