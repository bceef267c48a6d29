"""Requests in, results and traces out."""
