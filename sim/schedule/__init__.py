"""Schedules: what runs where, in which order, as tasks that the simulator and the engine share."""
