"""The best schedule and policy for a problem, and why it is the best."""
