"""Modbus and SunSpec."""
