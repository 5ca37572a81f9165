"""Cells, distances and class means of points."""
