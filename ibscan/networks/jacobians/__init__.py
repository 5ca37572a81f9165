"""Jacobians of recorded passes: how layers are differentiated, in what blocks, how exactly."""
