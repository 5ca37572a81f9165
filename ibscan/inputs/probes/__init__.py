"""Read files and callables to a Probe: choose the arrays x and y, scale and shape them, convert labels."""
