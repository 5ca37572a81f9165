"""Every example of the guide's page on Python runs as it stands."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ibscan

PAGE = (Path(ibscan.__file__).parent / "guide" / "python.md").read_text()


class Net(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


@pytest.mark.slow
def test_every_example_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 6))
    y = (x[:, 0] > 0).astype(int)
    np.savez("probe.npz", x=x, y=y)
    for epoch in (0, 10, 20):
        ibscan.save(tmp_path / "ckpts", Net(), epoch=epoch, spec="mlp:relu")
    ibscan.scan("ckpts", model=Net, probe=(x, y), output="ibscan.h5")
    for seed in (0, 1):
        shutil.copy("ibscan.h5", f"seed{seed}.h5")
    place = {"net": Net(), "Net": Net, "x": x, "y": y}
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 6
    for example in examples:
        exec(example, place)
    assert capsys.readouterr().out == "eps=-1: expected a finite number > 0.\n"
    assert Path("rank.pdf").stat().st_size
