"""Traces to and from disk: our Chrome files, PyTorch profiles, and files that appear whole or not at all."""
