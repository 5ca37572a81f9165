"""Find the model's spec: on the command line, in the manifest, in checkpoint metadata, or in a `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibscan.core.records import Checkpoint
from ibscan.engine.hints import unstated_model
from ibscan.errors import InputError, UsageError
from ibscan.inputs.code.hf_config import config_beside, stated_class
from ibscan.inputs.code.live import Live
from ibscan.inputs.series.adapters import adapters_sentence
from ibscan.inputs.series.manifest import Manifest
from ibscan.networks.resolve import parse_spec

__all__ = ["ModelSpec", "chain_globs", "stated_model"]


@dataclass(frozen=True)
class ModelSpec:
    """The spec of a model: `mlp:ACT:OUT`, `hf:CLASS` with config entries, or a callable with arguments.

    `chain` has the globs of `--chain`. They are not part of `str()`, which identifies a result: the layers they give,
    in order, are stored with it instead. `live` is the object that `spec` describes, where Python handed one over.
    """

    spec: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    live: Live | None = None

    def __str__(self) -> str:
        # The folder of a file does not identify it: its content does, and has a hash.
        file, _, name = self.spec.rpartition(":")
        spec = f"{Path(file).name}:{name}" if file.endswith(".py") else self.spec
        # `default=str`: arguments in a manifest may be dates, which JSON cannot hold.
        return f"{spec} {json.dumps(self.arguments, sort_keys=True, default=str)}" if self.arguments else spec


def stated_model(
    typed: str | Live | None,
    arguments: Mapping[str, Any],
    manifest: Manifest | None,
    checkpoints: Sequence[Checkpoint],
    *,
    trust: bool,
    chain: str | None = None,
) -> ModelSpec:
    """Return the model's spec: from `--model`, else the manifest, else metadata, else a `config.json`.

    Args:
        typed: `--model`, the object that Python handed over in its place, or None.
        arguments: `--model-arg`; each replaces the manifest's of the same name.
        manifest: The manifest beside the checkpoints, or None.
        checkpoints: The series.
        trust: Whether code named by files may run.
        chain: `--chain`, or None; it replaces the manifest's.

    Raises:
        UsageError: Nothing states the activation, the checkpoints contradict one another, the spec is unknown, a
            plain chain was given arguments, or code was given a chain.
        InputError: A file names code, and `--trust` was not given; a `config.json` that is needed cannot be used; or
            the checkpoints hold adapters, and no code that may know them was named.
    """
    if isinstance(typed, Live):
        if chain is not None:
            raise UsageError(f"--chain {chain}: is the order of a plain chain's containers, and {typed} is code.")
        return ModelSpec(typed.spec, dict(arguments), live=typed)
    if chain is None and manifest is not None and (typed or manifest.model_spec or "mlp:").startswith("mlp:"):
        chain = manifest.chain
    stated = typed
    if stated is None and manifest is not None and manifest.model_spec is not None:
        stated, arguments = manifest.model_spec, {**manifest.model_args, **arguments}
    if stated is None:
        stated = _found_spec(checkpoints)
    adapters = adapters_sentence(checkpoints[0])
    if adapters and (stated is None or stated.partition(":")[0] in ("mlp", "hf")):
        raise InputError(adapters)
    if stated is None:
        raise unstated_model(checkpoints[0])
    if stated.partition(":")[0] == "mlp":
        if arguments:
            raise UsageError(f"model arguments ({', '.join(arguments)}) are for a callable, and {stated} takes none.")
        return ModelSpec(str(parse_spec(stated)), chain=chain_globs(chain))
    if chain is not None:
        raise UsageError(f"--chain {chain}: is the order of a plain chain's containers, and {stated} is code.")
    if typed is None and not trust:
        raise InputError(_untrusted(stated, checkpoints[0]), options=("--model", "hf") if stated == "hf" else ())
    if stated.partition(":")[0] == "hf":
        return ModelSpec(f"hf:{stated_class(stated, checkpoints)}", dict(arguments))
    if typed is None:
        folder = manifest.path.parent if manifest is not None and manifest.model_spec else checkpoints[0].path.parent
        stated = str(folder / stated) if stated.partition(":")[0].endswith(".py") else stated
    return ModelSpec(stated, dict(arguments))


def _found_spec(checkpoints: Sequence[Checkpoint]) -> str | None:
    """Return the spec in the checkpoints' metadata, `hf` if a `config.json` lies beside them, else None."""
    specs = {_metadata_spec(checkpoint.metadata) for checkpoint in checkpoints}
    if len(specs) > 1:
        raise UsageError(
            f"the checkpoints name different models: {', '.join(sorted(str(s) for s in specs))}. "
            "Say which with --model mlp:ACT, or scan the runs separately."
        )
    stated = specs.pop()
    return "hf" if stated is None and config_beside(checkpoints[0]) is not None else stated


def _untrusted(stated: str, first: Checkpoint) -> str:
    if stated == "hf":
        return (
            f"{first.name}: the config.json beside it describes a model of the transformers library; add "
            "--model hf to have the library make it (no code of the folder runs), or --trust."
        )
    return (
        f"the series names code of its own as its model ({stated}), and code from files is not run unasked; "
        "name it yourself with --model, or add --trust."
    )


def chain_globs(chain: str | None) -> tuple[str, ...]:
    """Return the globs of `--chain` in order, none if it was not given.

    Raises:
        UsageError: One of them is empty.
    """
    globs = () if chain is None else tuple(glob.strip() for glob in chain.split(","))
    if not all(globs):
        raise UsageError(f"--chain {chain!r}: expected globs separated by commas, such as 'encoder.*,decoder.*'.")
    return globs


def _metadata_spec(metadata: Mapping[str, str]) -> str | None:
    if "ibscan.model" in metadata:
        return metadata["ibscan.model"]
    if "activation" not in metadata:
        return None
    return f"mlp:{metadata['activation']}" + (f":{metadata['output']}" if "output" in metadata else "")
