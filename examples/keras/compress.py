"""Keras 3 -> ONNX -> onnxpress: a classifier of 8x8 digits is trained, exported, compressed and written as a folder to serve.

It needs keras 3 with PyTorch as its backend (tensorflow takes tf2onnx beside it), onnxscript, scikit-learn (for the digits), the onnxpress
client, and a running service (`make serve`): `KERAS_BACKEND=torch python compress.py --out digits`. Keras warns of what it traces.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import onnxpress

EPOCHS, HELD_OUT = 12, 900


def network() -> keras.Model:
    """Give two convolutions and a head, channels last as Keras has them."""
    image = keras.Input((8, 8, 1), name="image")
    seen = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(image)
    seen = keras.layers.Conv2D(64, 3, padding="same", strides=2, activation="relu")(seen)
    return keras.Model(image, keras.layers.Dense(10, name="scores")(keras.layers.Flatten()(seen)))


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    asked = parser.parse_args()
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    made = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile("adam", loss, metrics=["accuracy"])
    made.fit(images[HELD_OUT:], labels[HELD_OUT:], epochs=EPOCHS, verbose=0)

    model, data = Path("digits.onnx"), Path("digits.npz")
    made.export(str(model), format="onnx", verbose=False)
    np.savez(data, image=images, label=np.where(np.arange(len(labels)) < HELD_OUT, labels, -1))

    with onnxpress.Client() as client:
        spec = {
            "kind": "compress",
            "model": client.models.upload(model).id,
            "dataset": client.datasets.upload(data, metric="top1").id,
            "recipe": {"passes": [{"type": "simplify"}, {"type": "fuse"}, {"type": "quantize_static"}]},
            "gates": [
                {"metric": "top1", "rule": "max_drop", "value": 0.03},
                {"metric": "size_bytes", "rule": "max_ratio", "value": 0.6},
            ],
        }
        job = client.jobs.wait(client.jobs.submit(spec).id)
        print(client.jobs.report(job.id)["summary"])
        print(f"verdict: {job.verdict}")
        client.exports.folder(job.output_model, asked.out)


if __name__ == "__main__":
    main()
