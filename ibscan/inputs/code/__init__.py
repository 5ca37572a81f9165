"""Models that the user names: code of theirs, and the classes of transformers."""
