"""The switch that forbids the hub to be asked."""

HF_HUB_OFFLINE = False
