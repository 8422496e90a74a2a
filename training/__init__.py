"""Phantoms, model files, and everything that makes a model."""
