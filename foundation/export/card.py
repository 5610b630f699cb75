"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foundation.nets.classical import PREDICTORS
from foundation.runtime.tracking import better

_TRACED = "traced in scenes of Sionna RT, whose cities are OpenStreetMap data (ODbL)"
_DEEPMIMO = "scenarios of DeepMIMO, each under its own licence, as a rule for non-commercial use: see deepmimo.net"
#: terms of use of the data, by source
_LICENCES = {
    **dict.fromkeys(("SionnaRT", "Areas", "Twins"), _TRACED),
    **dict.fromkeys(("DeepMIMO", "DeepMIMOCatalogue", "DeepMIMOv3"), _DEEPMIMO),
    "WAIRD": "WAIR-D, under the terms of its publisher; its maps are OpenStreetMap data (ODbL)",
    "TR38901": "drawn from the statistical model of 3GPP TR 38.901: no licence of data",
    "CDL": "drawn from the clustered delay lines of 3GPP TR 38.901: no licence of data",
    "Recorded": "recordings, under the terms of who made them",
}
#: sources without a data licence; the cards of models of other sources state the licence `other`
_FREE = {"TR38901", "CDL"}
#: baselines by the prefix of their scores; `target_` and `limit_` are bounds, not baselines
_CONTROLS = ("chance", "pca", "pursuit", "uncalibrated", "direct", "grid", "neighbours", *PREDICTORS)


def card(config: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return the model card: Markdown after the YAML front matter that a model hub reads.

    Args:
        config: Content of `config.json`: parts, data, and split, seed and metrics of the run.
        files: SHA-256 of each file of the folder by name.
    """
    data = config.get("data", {})
    sources = data.get("sources") or []
    licence = "apache-2.0" if sources and set(sources) <= _FREE else "other"
    models = sorted({part.get("model", "unknown") for part in config["parts"].values()})
    lines = ["---", "library_name: csi-foundation", f"license: {licence}"]
    lines += ["license_name: that-of-the-training-data"] if licence == "other" else []
    lines += ["tags: [wireless, channel-state-information]", "---", "", f"# {', '.join(models)}", ""]
    lines += ["| part | class |", "|---|---|"]
    lines += [f"| `{name}` | `{part['class']}` |" for name, part in config["parts"].items()]
    use = ["from foundation import embed", "", 'features = embed("THIS_FOLDER", csi)']
    if "model.safetensors" not in files:
        first = min(files, default="x.onnx")
        use = ["import onnxruntime", "", f'session = onnxruntime.InferenceSession("{first}")']
        use += ["print([(each.name, each.shape) for each in session.get_inputs()])"]
    lines += ["", "```python", *use, "```"]
    lines += ["", "## Data and licence", ""]
    lines += [f"- {name}: {_LICENCES.get(name, 'see its publisher')}." for name in sources]
    cities = data.get("cities", data.get("places"))  # `places` in checkpoints of older releases
    lines += [f"- Cities: {', '.join(cities)}."] if cities else []
    lines += [] if sources else ["The checkpoint does not say what it was trained on: ask who trained it."]
    lines += ["", "## Input", "", *_input(data), "", "## Measured", "", *_measured(config.get("summary", {}))]
    lines += ["", "## Checksums (SHA-256)", "", *(f"- `{name}` {digest}" for name, digest in sorted(files.items()))]
    return "\n".join(lines) + "\n"


def _input(data: Mapping[str, Any]) -> list[str]:
    if not data.get("csi"):
        return ["Not known: the checkpoint does not record the shape of its input."]
    snapshots = data.get("snapshots")
    shape = ", ".join(map(str, [*([snapshots] if snapshots else []), *data["csi"]]))
    axes = "N, R, T, K" if snapshots else "R, T, K"
    mean, std = data["power_db"]
    snr, doppler = data.get("snr_db"), data.get("doppler")
    return [
        f"- CSI ({axes}) = ({shape}), complex, the subcarrier of lowest frequency first; in ONNX real pairs (..., 2).",
        f"- Mean power of a link: {mean:.1f} dB, with a deviation of {std:.1f} dB over the training links.",
        f"- SNR: {f'{snr[0]:g} to {snr[1]:g} dB' if snr else 'trained without added noise'}.",
        f"- Doppler shift times the interval of snapshots, f_D T: "
        f"{f'{doppler[0]:.3g} to {doppler[1]:.3g}' if doppler else 'not known, or single snapshots'}.",
    ]


def _measured(summary: Mapping[str, Any]) -> list[str]:
    scores = {name.removeprefix("test/"): value for name, value in (summary.get("metrics") or {}).items()}
    metrics = {name: value for name, value in scores.items() if value is not None}
    if not metrics:
        return ["No test was run: this model has not been compared with any control."]
    rule = f"On the test side of the run that trained it, split `{summary.get('split')}`, seed {summary.get('seed')}."
    beaten: list[str] = []
    unbeaten: list[str] = []
    controls = {name: own for name in metrics if (own := _controlled(name, metrics)) and better(own)}
    for name, own in controls.items():
        won = metrics[own] < metrics[name] if better(own) == "min" else metrics[own] > metrics[name]
        (beaten if won else unbeaten).append(f"`{name}` {metrics[name]:.4g}, this model {metrics[own]:.4g}")
    lines = [rule, "", *(f"- Control beaten: {line}." for line in beaten)]
    lines += [f"- Control *not* beaten: {line}." for line in unbeaten]
    if not controls:
        lines.append("- No control was measured in the same run: compare with those in RESULTS.md before use.")
    shown = {name: value for name, value in metrics.items() if name not in controls}
    return [*lines, "", "| metric | test |", "|---|---|", *(f"| {k} | {v:.4g} |" for k, v in shown.items())]


def _controlled(name: str, metrics: Mapping[str, float]) -> str | None:
    """Return the model's metric that a baseline score such as `pca_nmse_db` is compared with; else None."""
    folder, slash, last = name.rpartition("/")
    named = [last.removeprefix(f"{each}_") for each in _CONTROLS if last.startswith(f"{each}_")]
    if last.endswith("_chance"):
        named += [last.removesuffix("_chance"), f"{last.removesuffix('_chance')}_accuracy"]
    return next((own for each in named if (own := f"{folder}{slash}{each}") in metrics), None)
