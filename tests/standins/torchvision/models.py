"""A callable with the arguments of torchvision's."""

from typing import Any

from torch import nn


def resnet18(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> nn.Module:
    assert weights is None, "would be fetched"
    assert progress
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, kwargs.pop("num_classes", 1000)))
