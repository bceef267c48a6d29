"""A model in numbers, read from its config.json."""
