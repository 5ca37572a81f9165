"""The command line, the only place that prints; commands import torch, scipy and h5py when they run."""
