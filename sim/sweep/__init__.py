"""Every combination of settings, a row each."""
