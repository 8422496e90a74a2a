"""Cross-validation and the model that comes of it."""
