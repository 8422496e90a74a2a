"""Measurements; each module prints its own when run with `python -m`."""
