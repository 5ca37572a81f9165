"""Load models that the user names: code of theirs, and classes of transformers."""
