"""What several tests need: oracles, networks, files of every kind, commands in processes."""
