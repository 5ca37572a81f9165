"""The command line: thin, the only place that prints; torch, scipy and h5py are imported inside commands alone."""
