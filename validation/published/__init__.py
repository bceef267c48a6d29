"""Published runs of other systems, predicted."""
