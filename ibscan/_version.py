"""The version, which results and parts state."""

__version__ = "0.1.0"
