"""A CUDA device: a stream for each lane."""
