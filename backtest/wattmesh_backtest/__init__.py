"""Plays a period of real data through the house's own planner, agents, market and settlement, in virtual time, in one process."""
