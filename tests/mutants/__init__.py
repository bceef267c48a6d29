"""Proof that wrong formulas and wrong schedules turn a test red: one mistake at a time, in a copy of the project."""
