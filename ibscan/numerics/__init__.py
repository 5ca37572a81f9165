"""Pure functions on tensors, named for the mathematics; they know no file, no layer, no epoch."""
