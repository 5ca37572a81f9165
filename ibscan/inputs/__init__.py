"""Read run folders to a Series, checkpoint files to tensors, probe files to a Probe, and the manifest.

Parameters in all of it: `name` is what messages call a file; `where`, `source` and `option` are what the user typed to
name something, for messages too; `shot` is a file's Snapshot; `wanted` is which of several sets or arrays to take.
"""
