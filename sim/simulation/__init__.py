"""A setup run in simulated time."""
