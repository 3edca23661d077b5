"""Fetch the Silero voice activity detector and record the states that real speech drives it through.

    python benchmarks/networks/silero.py [--out DIR]

The network (MIT) comes from the package `silero-vad`, the speech from Debian's `pocketsphinx-testdata`: LibriVox
recordings and spoken commands, 16 kHz.

Writes into DIR (default var/networks/silero_vad): `model.onnx`, as published, with an If per sampling rate;
`model_16k.onnx`, the published variant for 16 kHz without one; `frames.npz`. The network is recurrent, so `frames.npz`
is not a dataset of onnxpress but a record: for each frame of 32 ms its `input` [N, 576] (64 samples of context before
512 new ones), the `state` [N, 2, 128] that it starts in, and the `output` [N, 1] that the published network gave. To
play a frame: input[i:i+1], state[i][:, None, :], sr = 16000.
"""

import argparse
import json
import sys
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script can be started by its path

from benchmarks.networks import data, packages
from benchmarks.networks.export import session

REPOSITORY = Path(__file__).resolve().parents[2]
SPEECH_FOLDER = Path("/usr/share/pocketsphinx/test/data")
RATE = 16000
FRAME = 512
CONTEXT = 64
PAUSE = RATE // 2
"""Silence after every recording, so that the detector sees both classes."""

MODELS = {"model.onnx": "silero_vad.onnx", "model_16k.onnx": "silero_vad_16k_op15.onnx"}

Floats = npt.NDArray[np.float32]


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description="Fetch the Silero voice activity detector and record its states.")
    networks = REPOSITORY / "var" / "networks"
    parser.add_argument("--out", type=Path, metavar="DIR", default=networks / "silero_vad")
    parser.add_argument("--downloads", type=Path, metavar="DIR", default=networks / "downloads")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(packages.fetch(packages.SILERO, options.downloads)) as archive:
        for name, source in MODELS.items():
            (options.out / name).write_bytes(archive.read(f"silero_vad/data/{source}"))
    frames = _record(options.out / "model.onnx", _speech())
    data.write(frames, options.out / "frames.npz")
    facts = {
        "network": "silero_vad",
        "frames": len(frames["output"]),
        "share_of_speech": float((frames["output"] > 0.5).mean()),
        "bytes": (options.out / "model.onnx").stat().st_size,
    }
    (options.out / "network.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def _speech() -> Floats:
    """All recordings with pauses of faint noise between them, values -1..1."""
    recordings = sorted([*SPEECH_FOLDER.rglob("*.wav"), *SPEECH_FOLDER.rglob("*.raw")])
    if not recordings:
        sys.exit(f"{SPEECH_FOLDER} has no recordings. Install them with `apt-get install pocketsphinx-testdata`.")
    noise = np.random.default_rng(0).normal(0, 1e-3, PAUSE).astype(np.float32)
    return np.concatenate([part for path in recordings for part in (_read(path), noise)])


def _read(path: Path) -> Floats:
    """A recording of 16-bit samples at 16 kHz."""
    if path.suffix == ".raw":
        samples = path.read_bytes()
    else:
        with wave.open(str(path)) as stream:
            if (stream.getnchannels(), stream.getsampwidth(), stream.getframerate()) != (1, 2, RATE):
                raise ValueError(f"{path} is not a mono recording of 16 bit at 16 kHz")
            samples = stream.readframes(stream.getnframes())
    return np.frombuffer(samples, dtype="<i2").astype(np.float32) / np.float32(32768)


def _record(model: Path, speech: Floats) -> dict[str, npt.NDArray[Any]]:
    """Play `speech` frame by frame."""
    running = session(model)
    padded = np.concatenate([np.zeros(CONTEXT, dtype=np.float32), speech])
    state = np.zeros((2, 1, 128), dtype=np.float32)
    record: dict[str, list[Floats]] = {"input": [], "state": [], "output": []}
    for start in range(0, len(speech) - FRAME + 1, FRAME):
        frame = padded[None, start : start + CONTEXT + FRAME]
        record["input"].append(frame[0])
        record["state"].append(state[:, 0])
        output, state = running.run(None, {"input": frame, "state": state, "sr": np.array(RATE, dtype=np.int64)})
        record["output"].append(output[0])
    return {name: np.stack(values) for name, values in record.items()}


if __name__ == "__main__":
    main()
