"""Forecasts of load and production as quantiles."""
