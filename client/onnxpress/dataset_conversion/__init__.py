"""Turns what people have into the `.npz` that the service takes: images, recordings, texts, tables, arrays.

Each says in the file itself what it did (`dataset.json`), so that a deployment can do the same.
"""

from onnxpress.dataset_conversion.arrays import npy_to_npz
from onnxpress.dataset_conversion.audio import Sound, audio_to_npz
from onnxpress.dataset_conversion.declaration import Converted
from onnxpress.dataset_conversion.images import Interpolation, Layout, Pixels, images_to_npz
from onnxpress.dataset_conversion.tables import csv_to_npz
from onnxpress.dataset_conversion.texts import texts_to_npz

__all__ = [
    "Converted",
    "Interpolation",
    "Layout",
    "Pixels",
    "Sound",
    "audio_to_npz",
    "csv_to_npz",
    "images_to_npz",
    "npy_to_npz",
    "texts_to_npz",
]
