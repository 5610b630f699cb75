"""Folders of runs as the command line leaves them, without training."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file

MAP = {
    "kind": "map", "title": "Where the error arises", "label": "error", "unit": "m", "stations": [[0.0, 0.0]],
    "walls": [[[0.0, 0.0], [9.0, 9.0]]], "train_position": [[1.0, 2.0]],
}  # fmt: skip


def write_run(root, experiment="demo", name="a-s0", seed=0, lr=1e-3, points=20, **facts):
    """Write config, summary and metrics of a finished run, and return its folder."""
    folder = Path(root) / experiment / name
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, len(name)])
    head = facts.get("head", "positioning")
    model = {"class_path": "foundation.FineTune", "init_args": {"lr": lr, "mode": "finetune", "checkpoint": None}}
    source = {"class_path": "datamodules.SionnaRT", "init_args": {"scene": "munich"}}
    data = {"class_path": "datamodules.ChannelDataModule", "init_args": {"seed": seed, "source": source}}
    config = {"seed_everything": seed, "model": model, "data": data, "run_id": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    value = float(generator.uniform(10, 60))
    summary = {
        "experiment": experiment, "run_id": name, "model": "CSICLIP", "head": head, "mode": "finetune", "seed": seed,
        "split": "spatial", "n_train": 50, "train_cities": ["munich"], "test_cities": ["munich"], "wall_s": 12.5,
        "best": {f"val/{head}/mean_m": value},
        "metrics": {f"test/{head}/mean_m": value, f"test/{head}/cdf90_m": 2 * value},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({**summary, **facts}))
    lines = [f"step,train/loss,epoch,val/loss,val/{head}/mean_m"]
    lines += [
        f"{n * 10},{1 / (n + 1) + generator.uniform() / 9},{n},{1 / (n + 1)},{90 / (n + 1)}" for n in range(points)
    ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def add_plots(folder, users=200):
    """Add two pictures with data and one without to a run."""
    plots = folder / "plots"
    plots.mkdir()
    generator = np.random.default_rng(users)
    error = generator.gamma(2.0, 10.0, users)
    quantiles = np.quantile(error, np.linspace(0, 1, 101)).tolist()
    position = generator.uniform(0, 300, (users, 2)).tolist()
    counts = [[9, 1], [2, 8]]
    data = {
        "error_cdf": {
            "kind": "cdf",
            "title": "Positioning error",
            "label": "error",
            "unit": "m",
            "quantiles": quantiles,
        },
        "error_map": {**MAP, "position": position, "value": error.tolist()},
        "confusion": {"kind": "confusion", "title": "LOS", "classes": ["NLOS", "LOS"], "counts": counts},
    }
    picture = np.repeat(np.repeat(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8), 10, 0), 10, 1)
    for name in (*data, "reconstruction"):
        Image.fromarray(picture).save(plots / f"{name}.png")
    for name, content in data.items():
        (plots / f"{name}.json").write_text(json.dumps(content))


def add_features(folder, links=60):
    """Add what `lightning predict` writes of two sites of two cities."""
    generator = np.random.default_rng(links)
    rows = {
        "features": generator.normal(size=(links, 8)).astype(np.float32),
        "prediction": (1j * np.ones((links, 2, 2))).astype(np.complex64),
        "position": generator.uniform(0, 100, (links, 3)).astype(np.float32),
        "los": np.arange(links) % 2,
        "beam": np.arange(links) % 5 - 1,
        "site": np.arange(links) % 2,
        "user": np.arange(links),
    }
    sites = [{"name": f"{city}_bs0", "area": city, "city": city, "frequency": 3.5e9} for city in ("etoile", "munich")]
    save_file(rows, folder / "predictions.safetensors", {"sites": json.dumps(sites)})
