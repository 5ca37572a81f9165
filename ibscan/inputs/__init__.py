"""Bytes to nouns: run folders to Series, checkpoint files to tensors, probe files to Probe, and the manifest."""
