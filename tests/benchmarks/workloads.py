"""Networks and rows to measure speed on: fixed seeds, float64, and the operations that measuring them takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ibscan.core.network import Network
from ibscan.engine.scan import partition
from ibscan.networks.admission import traced_network
from ibscan.networks.resolve import ChainSpec
from ibscan.networks.stacked import stacked_chain

WIDE = (784, 512, 256, 128, 64, 10)
NARROW = (12, 10, 7, 5, 4, 3, 2)
ACTIVATION = {"relu": torch.relu, "tanh": torch.tanh}
# Pixels a side, and rows to train on.
SIDE, ROWS = 28, 20_000
CPU = torch.device("cpu")
# What a layer says of itself on the way, and what goes on to the next block.
Layers = Generator[torch.Tensor, None, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """Models one by one for the baseline, the same stacked into networks for ibscan, and the rows of the probe.

    `whole` says that those are all the rows a command would have, and not a part of its 1024.
    """

    name: str
    models: tuple[nn.Module, ...]
    networks: tuple[Network, ...]
    x: np.ndarray
    demanded: float = 0.0
    note: str = ""
    whole: bool = False


# Models. `pre` yields every layer's value in order of call: what asks for one layer runs no further than that layer.


class Named(nn.Module):
    """A model whose forward pass is the last value of `pre`."""

    def pre(self, x: torch.Tensor) -> Layers:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *_, value = self.pre(x)
        return value


class Chain(Named):
    """Linear layers with one activation between them."""

    def __init__(self, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.activation = activation
        for k, (inputs, outputs) in enumerate(itertools.pairwise(widths), 1):
            self.add_module(f"fc{k}", nn.Linear(inputs, outputs))

    def pre(self, x: torch.Tensor) -> Layers:
        for k, layer in enumerate(self.children()):
            x = layer(ACTIVATION[self.activation](x) if k else x)
            yield x
        return x


class Residual(Named):
    """Two 3 x 3 convolutions with batch norm and a shortcut, itself a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if (inputs, 1) != (outputs, stride):
            self.conv3 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)

    def pre(self, x: torch.Tensor) -> Layers:
        yield (h := self.conv1(x))
        yield (h := self.conv2(torch.relu(self.bn1(h))))
        if hasattr(self, "conv3"):
            yield (x := self.conv3(x))
            x = self.bn3(x)
        return torch.relu(self.bn2(h) + x)


class Convolutional(Named):
    """A stem, residual blocks, the mean over places, a linear head."""

    def __init__(self, stem: nn.Conv2d, pool: nn.Module, blocks: Sequence[Residual], classes: int) -> None:
        super().__init__()
        self.stem, self.bn, self.pool = stem, nn.BatchNorm2d(stem.out_channels), pool
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(blocks[-1].conv2.out_channels, classes)

    def pre(self, x: torch.Tensor) -> Layers:
        yield (h := self.stem(x))
        h = self.pool(torch.relu(self.bn(h)))
        for block in cast("Iterable[Any]", self.blocks):
            h = yield from block.pre(h)
        yield (h := self.head(h.mean((2, 3))))
        return h


class Attention(Named):
    """One transformer block, pre-norm, and a linear head on the mean over tokens."""

    def __init__(self, features: int, heads: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.query, self.key, self.value, self.out = (nn.Linear(features, features) for _ in range(4))
        self.wide, self.back = nn.Linear(features, hidden), nn.Linear(hidden, features)
        self.head = nn.Linear(features, classes)

    def pre(self, x: torch.Tensor) -> Layers:
        h = self.norm1(x)
        yield (query := self.query(h))
        yield (key := self.key(h))
        yield (value := self.value(h))
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        yield (h := self.out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)))
        x = x + h
        yield (h := self.wide(self.norm2(x)))
        yield (h := self.back(functional.gelu(h)))
        yield (h := self.head((x + h).mean(1)))
        return h


def unsettled(model: nn.Module) -> nn.Module:
    """Return the model in eval mode, its norms as far from the identity as training takes them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def resnet18() -> nn.Module:
    """Return a ResNet-18 for (3, 32, 32) images of 10 classes, with the stem of large images: 11 M weights."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Residual(*shape) for shape in (*widths, (512, 512, 1))]
    return unsettled(Convolutional(stem, nn.MaxPool2d(3, 2, 1), blocks, 10))


# Rows, and a network trained on them --------------------------------------------------------------------------------


def images(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, 784) in [0, 1] and classes: ten classes of twenty smooth templates, shifted, bent, dimmed, noisy.

    Three quarters of a row are dark, as in handwritten digits, and a class has no one template: on easier rows a net
    is done after one epoch and its units stay as they were at random.
    """
    fixed, g = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    coarse = torch.randn(200, 1, 8, 8, generator=fixed)
    smooth = functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True)
    style = torch.randint(200, (rows,), generator=g)
    bend = functional.interpolate(torch.randn(rows, 2, 4, 4, generator=g) * 0.1, (SIDE, SIDE), mode="bilinear")
    bend = bend + 0.05 * torch.randn(rows, 2, 1, 1, generator=g)
    axis = torch.linspace(-1, 1, SIDE)
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) + bend.movedim(1, -1)
    lit = (2 * smooth - 1.5).clamp(0, 1)[style]
    x = functional.grid_sample(lit, place, align_corners=True).flatten(1)
    x = x * (0.6 + 0.4 * torch.rand(rows, 1, generator=g))
    # Noise on what is lit alone: the background of a digit is zero.
    return (x + 0.1 * torch.randn(x.shape, generator=g) * (x > 0)).clamp(0, 1), style % 10


def training(snapshots: int, device: torch.device = CPU, epochs: int = 8) -> Iterator[Chain]:
    """Yield copies, float64, of the wide ReLU net in evenly spaced states of its training: the first is untrained."""
    torch.manual_seed(0)
    model = Chain(WIDE, "relu").to(device)
    x, y = (part.to(device) for part in images(ROWS, 1))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    steps = epochs * (len(x) // 128)
    wanted = [round(k * steps / max(1, snapshots - 1)) for k in range(snapshots)]
    for step in range(wanted[-1] + 1):
        for _ in range(wanted.count(step)):
            yield double(model)
        batch = torch.randint(len(x), (128,), device=device)
        optimiser.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()


def double(model: Chain) -> Chain:
    """Return a frozen copy of a wide net in float64 on the CPU."""
    copy = Chain(WIDE, model.activation).double()
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False)


def accuracy(model: Chain, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x.double()).argmax(1) == y).double().mean())


def active_shares(model: Any, x: torch.Tensor) -> list[float]:
    """Return the mean share of units above zero, layer by layer."""
    return [float((value > 0).double().mean()) for value in model.pre(x)]


# Networks ------------------------------------------------------------------------------------------------------------


def stacked(models: Sequence[Chain], rows: int, device: torch.device = CPU) -> tuple[Network, ...]:
    """Return networks of chains, stacked in blocks as a command cuts its series."""
    states = [model.state_dict() for model in models]
    order = [name for name, _ in models[0].named_children()]
    layers = [layer for layer in models[0].children() if isinstance(layer, nn.Linear)]
    units = sum(layer.out_features for layer in layers)
    spec = ChainSpec(models[0].activation, "identity")
    # Any things are cut into blocks alike.
    parts: Any = partition(cast("Any", states), units, rows, sum(tensor.numel() for tensor in states[0].values()))
    return tuple(stacked_chain(spec, order, part, device=device, dtype=torch.float64) for part in parts)


def tapped(name: str, model: nn.Module, shape: tuple[int, ...], rows: int, demanded: float) -> Workload:
    """Return the workload of a model that is no chain, on standard normal rows."""
    model = unsettled(model).double().requires_grad_(False)
    x = np.random.default_rng(0).standard_normal((rows, *shape))
    network = traced_network(model, x[:3], (), device=CPU, dtype=torch.float64)
    return Workload(name, (model,), (network,), x, demanded)


def relu_trained(rows: int) -> Workload:
    *_, model = training(2)
    seen, fresh = accuracy(model, *images(ROWS, 1)), accuracy(model, *images(2000, 2))
    x = images(rows, 2)[0].double()
    share = active_shares(model, x)[0]
    note = f"accuracy on its rows {seen:.3f}, on fresh rows {fresh:.3f}; active units of layer 1 {share:.0%}"
    return Workload("relu trained", (model,), stacked([model], rows), x.numpy(), 10, note)


def relu_untrained(rows: int) -> Workload:
    (model,) = training(1)
    x = images(rows, 2)[0].double()
    note = f"active units of layer 1 {active_shares(model, x)[0]:.0%}"
    return Workload("relu untrained", (model,), stacked([model], rows), x.numpy(), 5, note)


def small_stacked(rows: int) -> Workload:
    """Return 100 checkpoints whose weights grow, as they do in training, from small to saturating."""
    models = []
    for seed in range(100):
        torch.manual_seed(seed)
        model = Chain(NARROW, "tanh").double().requires_grad_(False)
        for weight in model.parameters():
            weight.mul_(1 + 0.04 * seed)
        models.append(model)
    x = np.random.default_rng(0).integers(0, 2, (rows, NARROW[0])).astype(float)
    networks = stacked(models, rows)
    note = f"{len(models)} checkpoints in {len(networks)} blocks"
    return Workload("small stacked", tuple(models), networks, x, 12, note, whole=True)


def residual_conv(rows: int) -> Workload:
    torch.manual_seed(0)
    blocks = [Residual(8, 8), Residual(8, 16, 2), Residual(16, 16)]
    model = Convolutional(nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.Identity(), blocks, 10)
    return tapped("residual conv", model, (1, 14, 14), rows, 3.5)


def attention(rows: int) -> Workload:
    torch.manual_seed(0)
    return tapped("attention", Attention(16, 4, 64, 10), (8, 16), rows, 1.5)


# Name -> builder, rows unless --rows says otherwise.
ON_CPU: dict[str, tuple[Callable[[int], Workload], int]] = {
    "relu trained": (relu_trained, 48),
    "relu untrained": (relu_untrained, 48),
    "small stacked": (small_stacked, 64),
    "residual conv": (residual_conv, 16),
    "attention": (attention, 64),
}


def wide_series(rows: int, checkpoints: int, device: torch.device) -> Workload:
    """Return W1: as many states of one training as there are checkpoints."""
    models = tuple(training(checkpoints, device))
    x = images(rows, 2)[0].double()
    note = f"{checkpoints} checkpoints x {rows} rows"
    return Workload("W1", models, stacked(models, rows, device), x.numpy(), note=note)


def large_residual(rows: int, side: int, device: torch.device) -> Workload:
    """Return W4: ResNet-18 on square images."""
    model = resnet18().double().requires_grad_(False).to(device)
    x = np.random.default_rng(0).standard_normal((rows, 3, side, side))
    network = traced_network(model, x[:3], (), device=device, dtype=torch.float64)
    return Workload("W4", (model,), (network,), x, note=f"{rows} rows of {side} x {side}")


# Floating-point operations that cannot be avoided; a product of m x k and k x n is 2 m k n. ---


def counting_operations(width: int, thresholds: int) -> float:
    """Return operations to count the eigenvalues of a width x width Gram above so many thresholds.

    The signs of an LDL^T, n^3 / 3, answer one threshold; tridiagonalisation, 4 n^3 / 3, answers any number.
    """
    return min(thresholds, 4) * width**3 / 3


def chain_operations(widths: Sequence[int], thresholds: int, active: Sequence[float]) -> float:
    """Return operations for one row of a chain, given the share of each layer's units that have a slope.

    Gram by Gram, G' = W D G D W^T: W D times G, then half of a symmetric product. The first Gram is W W^T and the same
    for all rows, so it and its counts are left out, as is the forward pass.
    """
    total = 0.0
    for (inputs, outputs), share in zip(itertools.pairwise(widths[1:]), active, strict=False):
        fed = share * inputs
        total += 2 * outputs * fed**2 + outputs**2 * fed + counting_operations(outputs, thresholds)
    return total


def module_operations(model: nn.Module, row: torch.Tensor, thresholds: int) -> float:
    """Return operations for one row of a model: the input basis carried through, a Gram and its counts each layer.

    Carrying one direction takes the multiplications of a forward pass, and a layer's Gram, on its smaller side, half of
    a symmetric product. The first layer's Jacobian is the same for all rows: its Gram and counts are left out.
    """
    multiplications = []

    def note(layer: nn.Conv2d | nn.Linear, _: object, value: torch.Tensor) -> None:
        places = value[0].numel() // len(layer.weight)
        multiplications.append((layer.weight.numel() * places, value[0].numel()))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    model(row)
    for handle in handles:
        handle.remove()
    inputs = row.numel()
    total = 2.0 * inputs * sum(number for number, _ in multiplications)
    for _, width in multiplications[1:]:
        narrow = min(inputs, width)
        total += narrow**2 * max(inputs, width) + counting_operations(narrow, thresholds)
    return total
