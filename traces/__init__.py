"""The record of a run, simulated or real: spans, counters and the files that hold them."""
