"""Schedules side by side on one problem."""
