"""Folders of radiographs: what is in them, what is wrong with them, and how they reach the network."""
