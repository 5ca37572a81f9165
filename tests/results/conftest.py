from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module that makes small results; loaded by path, for test folders are no packages."""
    place = Path(__file__).with_name("synthetic.py")
    spec = importlib.util.spec_from_file_location("ibscan_synthetic_results", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
