"""What a policy takes: the time of each task, its demand on what lanes share, and the memory of all of it."""
