"""The gateway of one site."""
