"""Version 5 writes files under the names of version 4."""

from typing import Any


def revert_weight_conversion(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    del model
    return {key.replace("layers.", "encoder.layer."): value for key, value in state.items()}
