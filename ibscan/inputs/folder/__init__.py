"""Read the names and neighbours of files: epoch, step and value, shards, files that are no checkpoint."""
