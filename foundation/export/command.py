"""`lightning export`: writes a checkpoint as a folder of safetensors or ONNX files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from datamodules.errors import InputError, needs
from datamodules.files import sha256
from foundation.checkpoint import CONFIG, WEIGHTS, described, load_part, read_checkpoint, save_tensors
from foundation.export.card import card
from foundation.export.graphs import graphs_of, write_graph
from foundation.runtime.runs import Run, read_summary

_KEPT = ("parts", "towers", "data")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(args: list[str]) -> Path:
    """Export a checkpoint by command-line arguments, and print the folder.

    Args:
        args: The command-line arguments after `export`.

    Returns:
        The folder.

    Raises:
        InputError: An argument is invalid, or nothing can be exported.
    """
    parser = _Parser(prog="lightning export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file, or a folder written by this command")
    parser.add_argument("--to", required=True, choices=("onnx", "safetensors"), help="what to write")
    parser.add_argument("--part", help="only this part of the model, such as csi or head [all]")
    parser.add_argument("--out", type=Path, help="folder to write to [export/ in the run, else next to the checkpoint]")
    given = parser.parse_args(args)
    folder = given.out or _default_folder(given.checkpoint)
    if given.to == "safetensors":
        write_folder(given.checkpoint, folder, given.part)
        print(f"exported: {folder} ({WEIGHTS}, {CONFIG}, README.md)")
    else:
        for file, error in write_onnx(given.checkpoint, folder, given.part).items():
            print(f"exported: {folder / file} (largest relative error in ONNX Runtime {error:.1e})")
    return folder


def _default_folder(checkpoint: Path) -> Path:
    run = None if checkpoint.is_dir() else Run.of(checkpoint)
    if run is not None:
        return run.folder / "export"
    return checkpoint if checkpoint.is_dir() else checkpoint.with_name(f"{checkpoint.stem}-export")


def _config(content: dict[str, Any], part: str | None, source: Path) -> dict[str, Any]:
    """Return the content of `config.json`, for all parts or one."""
    entry = described(content, part, source)
    kept = {key: content[key] for key in _KEPT if key in content}
    parts = kept.pop("parts", kept.pop("towers", {})) if part is None else {part: entry}
    if not parts:
        raise InputError(f"{source} does not say which parts it holds: it was not written by a model of the suite")
    run = None if source.is_dir() else Run.of(source)
    summary = content.get("summary", {}) if run is None else read_summary(run.folder / "summary.json")
    kept_summary = {key: summary[key] for key in ("split", "seed", "metrics") if key in summary}
    return {"data": {}, **kept, "parts": parts, "summary": kept_summary}


def write_folder(checkpoint: Path, folder: Path, part: str | None = None) -> None:
    """Write weights, configuration and model card, which `load_encoder` and `embed` read.

    Args:
        checkpoint: A checkpoint, or an exported folder.
        folder: Folder to write to.
        part: The only part to write; by default all.

    Raises:
        InputError: The checkpoint holds no such part, or is the folder to write to, which would lose its other parts.
    """
    content = read_checkpoint(checkpoint)
    config = _config(content, part, checkpoint)
    if part is not None and folder.exists() and checkpoint.is_dir() and folder.samefile(checkpoint):
        raise InputError(f"{folder} would lose all parts but {part}: give another folder by --out")
    prefixes = tuple(entry["prefix"] for entry in config["parts"].values())
    # copies: safetensors refuses tensors that share memory, as shared layers do
    weights = {k: v.clone().contiguous() for k, v in content["state_dict"].items() if k.startswith(prefixes)}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(weights, folder / WEIGHTS, {"format": "pt"})
    config["sha256"] = sha256(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    _write_card(folder, config)


def write_onnx(checkpoint: Path, folder: Path, part: str | None = None) -> dict[str, float]:
    """Write each part as ONNX graphs, with a model card.

    Parts that cannot be expressed in ONNX are skipped with a printed line, except a part requested by name.

    Args:
        checkpoint: A checkpoint, or an exported folder.
        folder: Folder to write to.
        part: The only part to write; by default all.

    Returns:
        The largest relative error of each file by name.

    Raises:
        InputError: The extra is not installed, or the requested part, or every part, cannot be expressed in ONNX.
    """
    with needs("export", "ONNX needs onnx, onnxscript and onnxruntime"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    content = read_checkpoint(checkpoint)
    config = _config(content, part, checkpoint)
    errors: dict[str, float] = {}
    for name in config["parts"]:
        try:
            if name == "head" and any(key.startswith("reduce.") for key in content["state_dict"]):
                raise InputError("the head reads tokens behind a layer that is no part: train it without model.tokens")
            if "init_args" not in config["parts"][name]:
                kind = config["parts"][name]["class"]
                raise InputError(
                    f"{name}, a {kind}: the checkpoint holds its weights, but no settings to build it again; export "
                    "its parts from trainings of their own"
                )
            for graph in graphs_of(name, load_part(checkpoint, name), content.get("data", {})):
                file = f"{graph.name}.onnx"
                errors[file] = write_graph(graph, folder / file)
        except InputError as error:
            if part is not None or len(config["parts"]) == 1:
                raise
            print(f"left out: {error}", file=sys.stderr)
    if not errors:
        raise InputError(f"no part of {checkpoint} can be written as ONNX")
    _write_card(folder, config)
    return errors


def _write_card(folder: Path, config: dict[str, Any]) -> None:
    files = [file for pattern in ("*.onnx", "*.safetensors") for file in folder.glob(pattern)]
    (folder / "README.md").write_text(card(config, {file.name: sha256(file) for file in files}))
