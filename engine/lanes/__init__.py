"""Tasks on threads: each lane works through its queue in order of issue."""
