"""Callables with the arguments of torchvision's."""
