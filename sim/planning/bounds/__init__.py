"""The least time that a policy can take."""
