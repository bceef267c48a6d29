"""The comparison: predictions against measured runs."""
