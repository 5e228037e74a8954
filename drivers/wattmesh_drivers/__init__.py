"""Devices: templates, and the drivers that read and write what the templates describe."""
