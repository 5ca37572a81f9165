"""Differentiate the layers of a traced model: modes, blocks, checks, rounding."""
