"""A machine in numbers, each of which says how it is known."""
