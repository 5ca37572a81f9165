"""Beside the stand-in for transformers."""
