"""Transports: how bytes travel between topics."""
