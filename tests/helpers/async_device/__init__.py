"""A device in Python whose streams run as late as an order lets them, for the engine's own stream code."""
