"""Run a benchmark as on a processor with AVX2 and nothing newer: no AVX-512, no VNNI, no AMX.

    python -m benchmarks.avx2 quantization [argument ...]

onnxruntime chooses its kernels by what `cpuid` tells, and so do we by /proc/cpuinfo. Here both are told less than the truth, in
this process and all that it starts; the kernels that then run are onnxruntime's own for such processors. Clock, caches and
memory stay those of this machine: ratios between networks are near those of an AVX2 machine, not equal to them.

Needs Linux on x86-64, gcc and objdump. Results go to var/benchmarks/GROUP-avx2.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.documents import KERNELS, RESULTS

SOURCE = Path(__file__).with_name("hide.c")
PLACE = RESULTS.parent / "avx2"
CPUID, TRAP = b"\x0f\xa2", b"\xcc\x90"
_NEWER = re.compile(r"\b(avx512\w*|avx10\w*|avx_vnni\w*|avx_ifma|avx_ne_convert|amx_\w+)\b ?")


def main() -> int:
    """Entry point; gives the exit code of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.avx2", description=__doc__)
    parser.add_argument("benchmark", help="quantization, pruning, distillation, search or demo")
    parser.add_argument("argument", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = [sys.executable, "-m", f"benchmarks.{options.benchmark}", *options.argument]
    return subprocess.run(command, env={**os.environ, **disguise(), KERNELS: "avx2"}, check=False).returncode


def disguise() -> dict[str, str]:
    """Make what hides the newer instructions, once; give the environment variables that put it to use."""
    PLACE.mkdir(parents=True, exist_ok=True)
    library = _library()
    return {
        "LD_PRELOAD": str(_preload()),
        "HIDE_LIBRARY": str(library),
        "HIDE_COPY": str(without_cpuid(library)),
        "HIDE_CPUINFO": str(_cpuinfo()),
    }


def without_cpuid(library: Path) -> Path:
    """Give a copy of a library with a trap in the place of each `cpuid`, as objdump finds them."""
    content = bytearray(library.read_bytes())
    copy = PLACE / hashlib.sha256(content).hexdigest()[:16] / library.name
    if copy.exists():
        return copy
    shift = _text_shift(library)
    places = [address - shift for address in _cpuid_addresses(library)]
    if not places:
        raise SystemExit(f"{library} holds no cpuid instruction: nothing could be hidden from it.")
    for place in places:
        if content[place : place + 2] != CPUID:
            raise SystemExit(f"{library}: no cpuid stands at byte {place}; its layout is not understood.")
        content[place : place + 2] = TRAP
    copy.parent.mkdir(exist_ok=True)
    for other in library.parent.glob("*.so*"):  # onnxruntime looks for its provider bridge beside itself
        if other != library:
            (copy.parent / other.name).symlink_to(other)
    copy.write_bytes(content)
    return copy


def _library() -> Path:
    """Find onnxruntime's library as Python's import spells it, without importing it."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or package.origin is None:
        raise SystemExit("onnxruntime is not installed.")
    return next((Path(package.origin).parent / "capi").glob("onnxruntime_pybind11_state*.so"))


def _preload() -> Path:
    library = PLACE / "hide.so"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-fPIC", "-shared", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def _cpuinfo() -> Path:
    """Write /proc/cpuinfo without the hidden flags; the name says what was done."""
    text = _NEWER.sub("", Path("/proc/cpuinfo").read_text())
    told = PLACE / "cpuinfo"
    told.write_text(re.sub(r"(?m)^(model name\s*: .*)$", r"\1 with everything newer than AVX2 hidden", text))
    return told


def _cpuid_addresses(library: Path) -> list[int]:
    listing = _output("objdump", "-d", "--no-show-raw-insn", "-j", ".text", str(library))
    return [int(found, 16) for found in re.findall(r"^\s*([0-9a-f]+):\s+cpuid\s*$", listing, re.MULTILINE)]


def _text_shift(library: Path) -> int:
    """Give the address of .text less its place in the file."""
    for line in _output("objdump", "-h", "-w", str(library)).splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == ".text":
            return int(fields[3], 16) - int(fields[5], 16)
    raise SystemExit(f"{library} has no section .text.")


def _output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
