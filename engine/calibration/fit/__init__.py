"""From measured times to the numbers of a machine."""
