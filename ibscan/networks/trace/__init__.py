"""One recorded forward pass: its operations, the graph they make, and how it is run again."""
