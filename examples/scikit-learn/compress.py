"""scikit-learn -> ONNX -> onnxpress: a random forest of 8x8 digits is trained, exported, made smaller and written as a folder to serve.

It needs scikit-learn, skl2onnx, the onnxpress client, and a running service (`make serve`): `python compress.py --out forest`
"""

import argparse
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

import onnxpress

HELD_OUT, TREES = 900, 40


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    asked = parser.parse_args()
    digits = load_digits()
    pixels, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    forest = RandomForestClassifier(TREES, random_state=0).fit(pixels[HELD_OUT:], labels[HELD_OUT:])

    model, data = Path("forest.onnx"), Path("forest.npz")
    # Scores as one tensor instead of a list of maps, which nothing but Python reads.
    exported = to_onnx(forest, pixels[:1], options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3})
    model.write_bytes(exported.SerializeToString())
    np.savez(data, X=pixels, label=np.where(np.arange(len(labels)) < HELD_OUT, labels, -1))

    with onnxpress.Client() as client:
        spec = {
            "kind": "compress",
            "model": client.models.upload(model).id,
            "dataset": client.datasets.upload(data, metric="top1").id,
            "recipe": {"passes": [{"type": "simplify"}]},
            # The same trees in fewer bytes: not one decision may change.
            "gates": [
                {"metric": "top1_agreement", "rule": "min", "value": 0.99},
                {"metric": "size_bytes", "rule": "max_ratio", "value": 0.9},
            ],
        }
        job = client.jobs.wait(client.jobs.submit(spec).id)
        print(client.jobs.report(job.id)["summary"])
        print(f"verdict: {job.verdict}")
        client.exports.folder(job.output_model, asked.out)


if __name__ == "__main__":
    main()
