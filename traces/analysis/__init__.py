"""What a run did: each lane's use of time, the critical path, and how two runs differ."""
