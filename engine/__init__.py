"""The execution: the schedules of `sim` driving PyTorch."""
