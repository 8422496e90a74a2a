"""Submits, follows and manages jobs."""
