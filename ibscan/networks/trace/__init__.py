"""Record a forward pass as a graph of operations, find the layers in it, and run it again with hooks."""
