"""Read a run folder to a Series: find checkpoints, inspect and compare them, put them in order."""
