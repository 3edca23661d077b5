"""Put all sections that were measured together into docs/benchmarks.md.

python -m benchmarks.report
"""

from pathlib import Path

from benchmarks.documents import RESULTS

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
GROUPS = {
    "demo": "The demo",
    "demo-avx2": "The demo, AVX2 without VNNI",
    "service": "Service",
    "http": "HTTP",
    "search-avx2": "A goal instead of a recipe, AVX2 without VNNI",
    "search": "A goal instead of a recipe",
    "quantization-avx2": "Quantization, AVX2 without VNNI",
    "quantization": "Quantization",
    "pruning": "Pruning",
    "distillation-avx2": "Distillation, AVX2 without VNNI",
    "distillation": "Distillation",
    "decoder": "A decoder",
    "trees": "Tree ensembles",
    "gpu": "GPUs",
    "field": "Networks out of wheels",
}
HIDDEN = """\
ONNX Runtime ran its kernels for processors with AVX2 and nothing newer, which was hidden from it on the machine that is named
([why and how](decisions/0014-older-kernels-on-newer-machines.md)). Ratios stand for AVX2 machines as far as caches and clock allow.
"""
OPENING = """\
# Benchmarks

Written by `python -m benchmarks.report` from what the benchmarks measured; [how to repeat each](../benchmarks/README.md).
Speeds are multiples of the fp32 network, measured run by run in turn in one process at one thread and batch 1. Changes of
quality are in points, paired sample by sample, with a 95 % interval, on samples that took no part: nobody who made a network
saw them, and nothing was chosen by them. Tables from before that was so say it. Peers run with the settings that are named, on the
same calibration samples.
"""


def main() -> None:
    """Entry point."""
    parts = [OPENING]
    for group, title in GROUPS.items():
        sections = sorted((RESULTS / group).glob("*.md"))
        if sections:
            parts.append(f"## {title}\n")
            parts += [HIDDEN] if group.endswith("-avx2") else []
            parts += [section.read_text() for section in sections]
    DOCUMENT.write_text("\n".join(parts))
    print(DOCUMENT)


if __name__ == "__main__":
    main()
