"""What names and neighbours of files say: epoch, step and value, shards, what is no checkpoint."""
