"""Jacobians of chains and what is read off singular values."""
