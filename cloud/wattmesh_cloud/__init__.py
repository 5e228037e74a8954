"""The fleet side: ingest, store, market, forecasts, grid, agents, API and console."""
