"""Decode attention on the host, beside the KV cache."""
