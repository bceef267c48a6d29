"""Measures this machine for a model: the numbers that the simulator needs, each with how it was found."""
