"""The device and the host beside it: memories with accounts, and lanes that work in order of issue."""
