"""Ours beside onnxruntime's six static settings on the bundled network: accuracy, size, latency in turns.

    python -m benchmarks.demo [--data DIR] [--seconds 60]

Ours chooses its steps on the first 500 test images of Fashion-MNIST. Accuracy is judged on the other 9,500 where they are
installed, else on the other 500 that the example carries: on images that nobody saw who made a network.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import documents
from benchmarks.demo.peers import SETTINGS, quantize
from benchmarks.networks import data
from engine import Compress, run
from engine.data.parts import CALIBRATE, SELECT
from engine.measure.intervals import tango
from engine.measure.latency import compare_many
from engine.report.values import LatencyComparison
from engine.runtime import sessions
from engine.target import Target

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion-mnist"
NETWORK = EXAMPLE / "residual_cnn.onnx"
OURS = "onnxpress"
LARGEST_LOSS = 0.003
SELECT_SAMPLES = 500

Images = npt.NDArray[np.float32]


def main() -> int:
    """Measure, print, and give 0 if ours is not slower than the fastest peer that keeps the accuracy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the four files of Fashion-MNIST")
    parser.add_argument("--seconds", type=float, default=60.0, help="of latency measurement")
    options = parser.parse_args()
    images, labels = _test_set(options.data)
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        made = _make(Path(folder))
        right = {name: _right(path, images, labels) for name, path in {"fp32": NETWORK, **made}.items()}
        feeds = [{_input(NETWORK): images[at : at + 1]} for at in range(8)]
        compared = compare_many(NETWORK, made, feeds, Target(), seconds=options.seconds, max_runs=5000, precision=0.004)
        sizes = {name: path.stat().st_size for name, path in {"fp32": NETWORK, **made}.items()}
    return _report(right, compared, sizes)


def _make(folder: Path) -> dict[str, Path]:
    with np.load(EXAMPLE / "data.npz", allow_pickle=False) as arrays:
        image, label = arrays["image"], arrays["label"]
    hidden = np.flatnonzero(label == data.UNLABELLED)
    calibration = image[hidden].astype(np.float32)
    made: dict[str, Path] = {}
    for name, setting in SETTINGS.items():
        made[name] = folder / f"{len(made)}.onnx"
        quantize(NETWORK, made[name], setting, _input(NETWORK), calibration)
    workspace = folder / "ours"
    for place in ("model", "data"):
        (workspace / place).mkdir(parents=True)
    shutil.copyfile(NETWORK, workspace / "model" / "model.onnx")
    chosen = np.concatenate([hidden, np.flatnonzero(label != data.UNLABELLED)[:SELECT_SAMPLES]])
    part = np.where(label[chosen] == data.UNLABELLED, CALIBRATE, SELECT)
    np.savez(workspace / "data" / "data.npz", image=image[chosen], label=label[chosen], part=part)
    spec = Compress.model_validate({"recipe": {"passes": [{"type": "simplify"}, {"type": "quantize_static"}]}})
    run(spec, workspace, lambda _event: None)
    made[OURS] = workspace / "out" / "model.onnx"
    return made


def _test_set(folder: Path | None) -> tuple[Images, npt.NDArray[np.int64]]:
    try:
        test = data.load("test", folder)
    except data.DatasetMissingError as error:
        print(f"{error}\nJudging on images of the example instead.\n", file=sys.stderr)
        with np.load(EXAMPLE / "data.npz", allow_pickle=False) as arrays:
            unseen = np.flatnonzero(arrays["label"] != data.UNLABELLED)[SELECT_SAMPLES:]
            return arrays["image"][unseen].astype(np.float32), arrays["label"][unseen]
    return test.image[SELECT_SAMPLES:].astype(np.float32), test.label[SELECT_SAMPLES:]


def _input(network: Path) -> str:
    return sessions.session(network, Target()).inputs[0].name


def _right(network: Path, images: Images, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Say for each image whether the network is right."""
    session = sessions.session(network, Target())
    name = session.inputs[0].name
    batches = [images[start : start + 100] for start in range(0, len(images), 100)]
    scores = np.concatenate([next(iter(session.run({name: batch}).values())) for batch in batches])
    found: npt.NDArray[np.bool_] = scores.argmax(axis=1) == labels
    return found


def _report(
    right: Mapping[str, npt.NDArray[np.bool_]], compared: Mapping[str, LatencyComparison], sizes: Mapping[str, int]
) -> int:
    base = right["fp32"]
    rows = [["fp32", f"{base.mean():.2%}", "", f"{sizes['fp32']:,}", "", "1", ""]]
    rows += [_row(name, base, right[name], comparison, sizes) for name, comparison in compared.items()]
    header = ["network", "top-1", "change (95 %)", "bytes", "smaller", "speed of fp32 (95 %)", "by CPU time"]
    lossless = [name for name in SETTINGS if base.mean() - right[name].mean() <= LARGEST_LOSS]
    best = min(lossless, key=lambda name: compared[name].ratios["p50"].value)
    ratio = compared[best].ratios["p50"].value / compared[OURS].ratios["p50"].value
    stable = all(comparison.stable for comparison in compared.values())
    text = (
        f"### The bundled network beside onnxruntime's six static settings, {len(base)} test images\n\n"
        f"{documents.table(header, rows)}\n\nFastest setting of onnxruntime that loses at most {LARGEST_LOSS:.1%}: {best};"
        f" ours runs at {ratio:.3f}x its speed{'' if stable else ' (the machine was too busy to be sure)'}."
    )
    print(text)
    content = {"speed_of_best_peer": ratio, "best_peer": best, "stable": stable, "bytes": dict(sizes)}
    compared_json = {name: comparison.model_dump(mode="json") for name, comparison in compared.items()}
    documents.store("demo", "static", {**content, "latency": compared_json}, text, quick=False)
    return 0 if ratio >= 1 else 1


def _row(
    name: str,
    base: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    comparison: LatencyComparison,
    sizes: Mapping[str, int],
) -> list[str]:
    gained, lost = int((right & ~base).sum()), int((base & ~right).sum())
    change = tango(gained, lost, len(base))
    p50 = comparison.ratios["p50"]
    return [
        name,
        f"{right.mean():.2%}",
        f"{(gained - lost) / len(base):+.2%} ({change.low:+.2%} to {change.high:+.2%})",
        f"{sizes[name]:,}",
        f"{sizes['fp32'] / sizes[name]:.2f}x",
        f"{1 / p50.value:.3f}x ({1 / p50.interval.high:.3f} to {1 / p50.interval.low:.3f})",
        "" if comparison.cpu_ratio is None else f"{1 / comparison.cpu_ratio.value:.3f}x",
    ]


if __name__ == "__main__":
    sys.exit(main())
