"""Synthetic panoramic radiographs of known truth."""
