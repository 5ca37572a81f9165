"""A run folder to a Series: checkpoints found, inspected, held against each other, put in order."""
