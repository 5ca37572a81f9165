"""What every room may use: text, and child processes."""
