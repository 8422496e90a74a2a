"""Measurements: `python -m bench` makes and prints them, and each part of it is a module."""
