"""Weights to something that can be asked about every layer."""
