"""One trace against its schedule and against the cost model."""
