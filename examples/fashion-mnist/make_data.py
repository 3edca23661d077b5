"""Write `data.npz`: the images that calibrate and judge the example network.

python examples/fashion-mnist/make_data.py [--data DIR]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script can be started by its path

from benchmarks.networks import data

HERE = Path(__file__).resolve().parent
TEST_SAMPLES = 1000


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description="Write data.npz beside this script.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the four files of Fashion-MNIST")
    options = parser.parse_args()
    try:
        calibration = data.load("train", options.data).first(data.CALIBRATION_SAMPLES)
        test = data.load("test", options.data).first(TEST_SAMPLES)
    except data.DatasetMissingError as error:
        sys.exit(str(error))
    target = HERE / "data.npz"
    data.write(data.calibration_and_test(calibration, test), target)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
