"""The schedules of known systems, one file each."""
