"""Files and callables to a Probe: which arrays are x and y, and what they become."""
