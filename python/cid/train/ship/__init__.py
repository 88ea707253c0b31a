"""Saved students for elsewhere."""
