"""Local rank: how many directions of the input a layer still responds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ibscan.numerics.spectrum import effective_rank, numerical_rank, singular_values, stable_rank
from ibscan.types import Array, At, Estimate, Network, Probe, Quantity, Status, Streams

__all__ = ["LocalRank"]


@dataclass(frozen=True)
class LocalRank:
    """Mean number of singular values of the input Jacobian above a threshold, absolute and relative.

    Args:
        eps: Absolute thresholds, > 0 (strict inequality).
        rel_eps: Thresholds relative to the row's largest singular value.
        at: `pre` (the definition) or `post`.
        samples: Probe rows at most.
        spectrum_rows: Rows on which spectra are averaged; counts use all.

    Source:
        Patel and Shwartz-Ziv 2024, arXiv 2410.07687, section 2.
    """

    eps: tuple[float, ...] = (0.001, 0.01, 0.1)
    rel_eps: tuple[float, ...] = (0.001, 0.01, 0.1)
    at: At = "pre"
    samples: int | None = 1024
    spectrum_rows: int | None = 64

    name: ClassVar[str] = "local_rank"
    hidden: ClassVar[bool] = False
    primary: ClassVar[tuple[str, ...]] = ("local_rank", "local_rank_rel")
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("local_rank", "LR_eps", "1", "mean number of singular values of the input Jacobian > eps", ("eps",)),
        Quantity(
            "local_rank_rel",
            "LR_rel",
            "1",
            "mean number of singular values of the input Jacobian > rel_eps times the row's largest",
            ("rel_eps",),
        ),
        Quantity(
            "singular_value",
            "sigma_k",
            "1",
            "mean over rows of the k-th largest singular value of the input Jacobian",
            ("component",),
            default_shown=False,
            limit="spectrum_rows",
        ),
        Quantity(
            "effective_rank",
            "exp H(sigma)",
            "1",
            "mean exponential of the entropy of normalised singular values",
            limit="spectrum_rows",
        ),
        Quantity(
            "stable_rank",
            "||J||_F^2/||J||_2^2",
            "1",
            "mean squared Frobenius over squared spectral norm",
            limit="spectrum_rows",
        ),
    )

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """Thresholds; `component` is as long as the network makes it."""
        return {"eps": self.eps, "rel_eps": self.rel_eps}

    def __call__(self, network: Network, probe: Probe, streams: Streams) -> Mapping[str, Estimate]:  # noqa: ARG002
        """Measure every layer of every checkpoint; nothing here is random.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled.
            streams: Not used.

        Returns:
            Counts with sd / sqrt(N), extremes, and spectra averaged over the first `spectrum_rows` rows.
        """
        rows, layers, size = len(probe.x), len(network.layers), network.size
        spectral = rows if self.spectrum_rows is None else min(rows, self.spectrum_rows)
        widest = max(min(layer.width, probe.x[0].size) for layer in network.layers)
        eps = torch.tensor(self.eps, dtype=torch.float64, device=network.device)
        relative = torch.tensor(self.rel_eps, dtype=torch.float64, device=network.device)
        counts = np.zeros((size, layers, rows, len(eps) + len(relative)))
        spectrum = np.zeros((size, layers, widest + 2))
        present = np.zeros((layers, widest + 2), dtype=bool)
        largest = np.zeros((size, layers))
        finite = np.ones((size, layers), dtype=bool)

        def visit(layer: int, factor: torch.Tensor, block: slice) -> None:
            sound = torch.isfinite(factor).flatten(1).all(1)
            finite[:, layer] &= sound.cpu().numpy()
            # LAPACK raises on a NaN; the checkpoints it belongs to are marked, and must not stop the others.
            sigma = singular_values(torch.where(sound.view(-1, 1, 1, 1), factor, 0.0))
            top = sigma[..., :1]
            number = torch.cat((numerical_rank(sigma, eps), numerical_rank(sigma, relative * top)), -1)
            counts[:, layer, block] = number.cpu().numpy()
            largest[:, layer] = np.maximum(largest[:, layer], top.amax((1, 2)).cpu().numpy())
            part = slice(block.start, min(block.stop, spectral))
            if part.start < part.stop:
                share = sigma.expand(-1, block.stop - block.start, -1)[:, : part.stop - part.start]
                stack = torch.cat((share, effective_rank(share).unsqueeze(-1), stable_rank(share).unsqueeze(-1)), -1)
                at = [*range(sigma.shape[-1]), widest, widest + 1]
                present[layer, at] = True
                spectrum[:, layer, at] += stack.sum(1).cpu().numpy() / spectral

        network.jacobians(probe.x, visit, at=self.at)
        status = np.where(finite, np.where(largest > 0, Status.OK, Status.DEAD), Status.NONFINITE).astype(np.int8)
        counts[~finite] = np.nan
        spectrum[~finite] = np.nan
        spectrum = np.where(present, spectrum, np.nan)
        split = len(eps)
        components = np.repeat(status[..., None], widest, -1)
        components[np.isnan(spectrum[..., :widest]) & finite[..., None]] = Status.NOT_MEASURED
        return {
            "local_rank": _counted(counts[..., :split], status),
            "local_rank_rel": _counted(counts[..., split:], status),
            "singular_value": Estimate(spectrum[..., :widest], components),
            "effective_rank": Estimate(spectrum[..., widest], status),
            "stable_rank": Estimate(spectrum[..., widest + 1], status),
        }


def _counted(counts: Array, status: Array) -> Estimate:
    rows = counts.shape[2]
    # One row has no spread: its standard error is unknown, not zero.
    error = counts.std(2, ddof=1) / np.sqrt(rows) if rows > 1 else np.full_like(counts[:, :, 0], np.nan)
    return Estimate(
        counts.mean(2),
        np.repeat(status[..., None], counts.shape[3], -1),
        stderr=error,
        minimum=counts.min(2),
        maximum=counts.max(2),
    )
