"""`make demo`: the whole way on real input. Starts the service, looks for the network that a goal asks for, stops."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from settings.private_folder import private_folder
from standalone.serve import Embedded

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion-mnist"
# 667 images tell a loss of two points from none, and not one of half a point. In so short a time the search looks at less: the
# file names a few widths, and the precision that this network is fastest in.
LIMITS = ("--max-drop", "2%", "--max-size", "40%", "--budget", "80s")


def demo(out: Path, data_dir: Path) -> int:
    """Run the demo; the artifact and its report end up in `out`. Gives the CLI's exit code.

    `data_dir` is where a service has its data: where `out` lies in it, it is closed to others, as a service would.
    """
    make_folder(out, data_dir)
    trains = find_spec("torch") is not None
    print(
        "onnxpress demo: a residual CNN trained on Fashion-MNIST. Wanted: the fastest network that loses at most 2 points and takes\n"
        f"at most 40 % of the bytes, found in 80 seconds{' of cutting, refitting and training' if trains else ''}, judged on 667 images that"
        " chose nothing.\n"
    )
    network, report = out / "residual_cnn.small.onnx", out / "residual_cnn.small.md"
    data_dir = Path(tempfile.mkdtemp(prefix="onnxpress-demo-"))
    try:
        with Embedded(data_dir, host="127.0.0.1", port=0, workers=1, say=print) as service:
            print(f"The service runs at {service.url}. This is what a user types:\n")
            code, job = _type(
                service,
                "compress",
                _path(EXAMPLE / "residual_cnn.onnx"),
                *("--data", _path(EXAMPLE / "data.npz")),
                *("--goal", _path(EXAMPLE / "goal.json")),
                *LIMITS,
                *("--out", _path(network), "--report", _path(report)),
            )
            if job:
                print(
                    "\nWhat else there is to choose from; `onnxpress pick` makes any of these, without searching again:\n"
                )
                _type(service, "front", job)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    made = [path for path in (network, report) if path.exists()]
    print(f"\nEverything is stopped. What was made: {', '.join(map(str, made)) or 'nothing'}.")
    if not trains:
        print("With PyTorch the best candidates are distilled from the original too: make demo EXTRAS=train")
    return code


def make_folder(out: Path, data_dir: Path) -> None:
    """Make the folder for what comes out."""
    if data_dir.resolve() in out.resolve().parents:
        private_folder(data_dir)
    out.mkdir(parents=True, exist_ok=True)


def _path(path: Path) -> str:
    return os.path.relpath(path)


def _type(service: Embedded, *words: str) -> tuple[int, str]:
    """Run the command line as a user does; gives its exit code and the first line for programs."""
    argv = ["onnxpress", *words]
    print("  $ " + " ".join(argv) + "\n", flush=True)
    env = {
        **os.environ,
        "ONNXPRESS_URL": service.url,
        "ONNXPRESS_API_KEY": service.key_file.read_text().strip(),
    }
    done = subprocess.run([sys.executable, "-m", *argv], env=env, check=False, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout.partition("\n")[0]
