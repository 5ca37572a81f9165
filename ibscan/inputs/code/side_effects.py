"""Recognise calls that train or write files by their names: no import of a model should make one."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

__all__ = ["dotted", "has_side_effect", "trains"]

TRAINING = {
    *("backward", "fit", "fit_generator", "fit_one_cycle", "fine_tune", "learn", "step"),
    *("apply_gradients", "train_on_batch", "train_step", "training_step", "LightningCLI"),
}
SAVING = {
    *("save", "save_file", "save_model", "save_pretrained", "save_checkpoint", "save_weights", "save_state"),
    *("save_state_dict", "async_save", "savez", "savez_compressed", "savetxt", "savemat", "savefig", "save_image"),
    *("imwrite", "write_text", "write_bytes", "tofile", "touch", "unlink", "rmdir", "rmtree", "to_pickle"),
    *("to_parquet", "to_hdf", "to_feather", "to_excel", "imsave", "mimsave", "urlretrieve", "symlink_to"),
    *("hardlink_to", "SummaryWriter", "FileHandler", "WatchedFileHandler", "RotatingFileHandler"),
    "TimedRotatingFileHandler",
}
# By full name: the last part alone says too little.
WRITING = {
    *("os.remove", "os.unlink", "os.rename", "os.renames", "os.replace", "os.rmdir", "os.removedirs", "os.truncate"),
    *("shutil.move", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "runpy.run_path"),
    *("pathlib.Path().rename", "pathlib.Path().replace", "pathlib.Path.rename", "pathlib.Path.replace"),
    *("runpy.run_module", "joblib.dump", "pickle.dump", "json.dump", "wandb.init", "mlflow.start_run"),
    *("mlflow.log_param", "mlflow.log_params", "mlflow.log_metric", "mlflow.autolog", "mlflow.set_experiment"),
    *("os.symlink", "os.link", "shelve.open", "torch.onnx.export", "torch.hub.download_url_to_file"),
}
# A callable that saves any of these trains; other files may be a cache of what it computed.
CHECKPOINTS = {"backward", "save_file", "save_model", "save_pretrained", "save_checkpoint"}
# Without a file these return text.
WITH_A_FILE = {"to_csv", "to_json", "to_string"}
OPENING = {"open", "File", "ZipFile", "TarFile", "FileIO", "memmap", "open_memmap", "fdopen"}
WRITE_MODE = re.compile(r"(?=[rbt]*[wax+])[rwaxbt+-]{1,4}([:|]\w*)?")
# As bare names these are functions of the user's own file.
METHODS = {"backward", "fit", "learn", "step", "save", "touch"}
PROGRAMS = re.compile(r"(^|[\s/])(rm|mv|cp|python[\d.]*|torchrun|accelerate|deepspeed|make|(ba)?sh)(\s|$)|\.(py|sh)\b")
STARTING = re.compile(r"(os\.(system|popen)|subprocess\.\w+)")


def dotted(node: ast.expr, imported: Mapping[str, str]) -> str:
    """Return the full name of the `func` of a call, such as `torch.save`, with `?` for a part without a name.

    Example:
        >>> dotted(ast.parse("t.save", mode="eval").body, {"t": "torch"})
        'torch.save'
    """
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, imported)}.{node.attr}"
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Call):  # the `Path("x")` of `Path("x").open`
        return f"{dotted(node.func, imported)}()"
    return "?"


def trains(call: ast.Call, imported: Mapping[str, str]) -> bool:
    """Tell whether only training makes such a call: the test of callables, which may write a cache."""
    name = dotted(call.func, imported)
    before, _, last = name.rpartition(".")
    if name == "ibscan.save" or (last in CHECKPOINTS and bool(before)):
        return True
    if name == "torch.save":
        return any(isinstance(node, ast.Attribute) and node.attr == "state_dict" for node in ast.walk(call))
    steps = last == "step" and re.search(r"opt|scaler|sched", before, re.IGNORECASE)
    return bool(steps) or _of_a_trainer(before, last)


def has_side_effect(call: ast.Call, imported: Mapping[str, str]) -> bool:
    """Tell whether a call trains, or writes, moves or deletes files: at module level, the sign of a script.

    Example:
        >>> [has_side_effect(ast.parse(text, mode="eval").body, {}) for text in ("net.train()", "open('log.txt', 'w')")]
        [False, True]
    """
    name = dotted(call.func, imported)
    before, _, last = name.rpartition(".")
    if name == "safetensors.torch.save":  # returns bytes
        return False
    if name in WRITING or (last in TRAINING | SAVING and (bool(before) or last not in METHODS)):
        return True
    if last == "train" and before:
        return _of_a_trainer(before, last) or not _sets_a_mode(call)
    if last == "basicConfig":
        return any(word.arg == "filename" for word in call.keywords)
    if last in WITH_A_FILE:
        return bool(call.args or {word.arg for word in call.keywords} & {"path_or_buf", "path"})
    if last in OPENING:
        return _opened_to_write(call, attribute=bool(before))
    return _of_a_trainer(before, last) or (bool(STARTING.fullmatch(name)) and _starts_a_program(call))


def _of_a_trainer(before: str, last: str) -> bool:
    owner = before.rpartition(".")[2].lower()
    return "trainer" in owner and last in ("fit", "train", "run", "resume")


def _sets_a_mode(call: ast.Call) -> bool:
    """Tell whether `x.train(...)` sets a module's mode: it has no argument, or only the mode."""
    given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    return len(given) == len(call.args) + len(call.keywords) <= 1 and not any(
        isinstance(one, ast.Name) and one.id not in ("mode", "training") for one in given
    )


def _opened_to_write(call: ast.Call, *, attribute: bool) -> bool:
    # `open(path, mode)` and `gzip.open(path, mode)`, but `path.open(mode)`.
    position = 0 if attribute and len(call.args) == 1 else 1
    modes = [*call.args[position : position + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    return any(
        isinstance(m, ast.Constant) and isinstance(m.value, str) and WRITE_MODE.fullmatch(m.value) for m in modes
    )


def _starts_a_program(call: ast.Call) -> bool:
    parts = [node for given in call.args for node in ast.walk(given)]
    words = [node.value for node in parts if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    python = any(isinstance(node, ast.Attribute) and node.attr == "executable" for node in parts)
    return python or any(PROGRAMS.search(word) for word in words)
