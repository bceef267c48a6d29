"""The same simulation over arrays in compiled code, for those who ask about many setups."""
