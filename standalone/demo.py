"""`make demo`: the whole way on real input. Starts the service, compresses a real network through the CLI, stops."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from standalone.serve import Embedded

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion-mnist"


def demo(out: Path) -> int:
    """Run the demo; the artifact and its report end up in `out`. Gives the CLI's exit code."""
    out.mkdir(parents=True, exist_ok=True)
    print(
        "onnxpress demo: a residual CNN trained on Fashion-MNIST, compressed to INT8 and judged on 667 images that chose nothing.\n"
    )
    made = [out / "residual_cnn.int8.onnx"]
    data_dir = Path(tempfile.mkdtemp(prefix="onnxpress-demo-"))
    try:
        with Embedded(data_dir, host="127.0.0.1", port=0, workers=1, say=print) as service:
            print(f"The service runs at {service.url}. This is what a user types:\n")
            code = _compress(service, "job.json", made[0])
            if code == 0 and find_spec("torch") is not None:
                print(
                    "\nMost channels go, and 45 seconds of distillation from the original win back what that costs:\n"
                )
                made.append(out / "residual_cnn.distilled.onnx")
                code = _compress(service, "distill.json", made[1])
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    told = "; ".join(f"{path}, its report {_report(path)}" for path in made)
    print(f"\nEverything is stopped. What was made: {told}.")
    if len(made) == 1:
        print("With PyTorch it shows distillation too: make demo EXTRAS=train")
    return code


def _report(network: Path) -> Path:
    return network.with_suffix(".md")


def _compress(service: Embedded, job: str, out: Path) -> int:
    argv = [
        "onnxpress",
        "compress",
        os.path.relpath(EXAMPLE / "residual_cnn.onnx"),
        *("--data", os.path.relpath(EXAMPLE / "data.npz")),
        *("--recipe", os.path.relpath(EXAMPLE / job)),
        *("--out", os.path.relpath(out)),
        *("--report", os.path.relpath(_report(out))),
    ]
    print("  $ " + " ".join(argv) + "\n", flush=True)
    env = {
        **os.environ,
        "ONNXPRESS_URL": service.url,
        "ONNXPRESS_API_KEY": service.key_file.read_text().strip(),
    }
    return subprocess.run([sys.executable, "-m", *argv], env=env, check=False).returncode
