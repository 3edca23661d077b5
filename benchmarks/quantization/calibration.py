"""Memory that calibration takes with 64 and with 2,048 samples, on the residual CNN."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import documents
from benchmarks.cases import UNLABELLED, named
from benchmarks.contest import HERE, SCRATCH
from benchmarks.networks import data
from benchmarks.peers import environments
from benchmarks.process import Spent, spend

COUNTS = (64, 2048)
_HELD_OUT = 256
_PEERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "onnxruntime min-max": ("onnxruntime", {"kind": "static", "method": "minmax"}),
    "onnxruntime percentile": ("onnxruntime", {"kind": "static", "method": "percentile"}),
    "onnxruntime entropy": ("onnxruntime", {"kind": "static", "method": "entropy"}),
    "nncf": ("nncf", {}),
    "onnxsim": ("onnxsim", {"kind": "static"}),
}
_OURS = "onnxpress quantize_static"


def measure(*, quick: bool) -> tuple[dict[str, Any], str]:
    """Quantize with both numbers of samples and compare the peaks of the processes."""
    counts = (32, 256) if quick else COUNTS
    images = data.load("train").first(max(counts) + _HELD_OUT)
    outcomes: dict[str, list[Spent]] = {name: [] for name in [*_PEERS, _OURS]}
    for count in counts:
        folder = SCRATCH / "quantization" / "calibration" / str(count)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "calibration.npz", allow_pickle=False, image=images.image[:count].astype(np.float32))
        _write_dataset(images, count, folder / "dataset.npz")
        for name, (peer, settings) in _PEERS.items():
            outcomes[name].append(_by_peer(peer, settings, folder, name))
        outcomes[_OURS].append(_by_us(folder))
    entries = {name: [vars(spent) for spent in both] for name, both in outcomes.items()}
    return {"case": "calibration", "counts": counts, "entries": entries}, _markdown(outcomes, counts)


def _write_dataset(images: data.Samples, count: int, path: Path) -> None:
    """The first samples calibrate; the last ones, always the same, judge."""
    image = np.concatenate([images.image[:count], images.image[-_HELD_OUT:]])
    label = np.concatenate([np.full(count, UNLABELLED, np.int64), images.label[-_HELD_OUT:]])
    np.savez(path, allow_pickle=False, image=image, label=label)


def _by_peer(peer: str, settings: Mapping[str, Any], folder: Path, name: str) -> Spent:
    place = folder / name
    request = {
        "model": str(named(["residual_cnn"])[0].path),
        "out": str(place / "model.onnx"),
        "calibration": str(folder / "calibration.npz"),
        "settings": dict(settings),
    }
    try:
        return spend(environments.interpreter(peer), HERE / "peers" / f"{peer}_quantize.py", request, place)
    except environments.PeerMissingError as error:
        return Spent(problem=f"cannot be installed: {error}")


def _by_us(folder: Path) -> Spent:
    place = folder / _OURS
    request = {
        "model": str(named(["residual_cnn"])[0].path),
        "out": str(place / "model.onnx"),
        "data": str(folder / "dataset.npz"),
        "spec": {"recipe": {"passes": [{"type": "quantize_static"}]}},
    }
    return spend(Path(sys.executable), HERE / "engine_job.py", request, place)


def _markdown(outcomes: Mapping[str, list[Spent]], counts: tuple[int, int]) -> str:
    header = (
        "quantized by",
        *(f"peak, {count:,} samples" for count in counts),
        "ratio",
        *(f"s, {n:,}" for n in counts),
    )
    return (
        "### Memory of calibration (`calibration`)\n\n"
        "Residual CNN; peak resident memory of the whole process. Ours is the whole job: calibration, verification, quality"
        " and latency.\n\n" + documents.table(header, [_row(name, both) for name, both in outcomes.items()])
    )


def _row(name: str, both: list[Spent]) -> list[str]:
    peaks = [spent.peak_rss_bytes for spent in both]
    few, many = peaks
    ratio = f"{many / few:.2f}" if few and many else ""
    cells = [spent.problem or f"{(spent.peak_rss_bytes or 0) / 1e6:,.0f} MB" for spent in both]
    return [name, *cells, ratio, *(documents.seconds(spent.seconds) for spent in both)]
