"""Quantize the decoder of benchmarks/networks/decoder.py to int4 with an int8 head, and hold it to the bars.

    python -m benchmarks.decoder [--network DIR] [--only RECIPE] [--quick]

Needs DIR (default var/networks/decoder) as `decoder.py` writes it, and onnxruntime-genai (the extra `genai`). The result goes to
var/benchmarks/decoder.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import documents, engine_job
from benchmarks.decoder import genai_write
from benchmarks.networks.decoder_shape import DecoderShape
from benchmarks.process import spend
from onnxpress.genai_folder import complete

REPOSITORY = Path(__file__).resolve().parents[2]
SCRATCH = REPOSITORY / "var" / "benchmarks" / "work" / "decoder"
GROUP = "decoder"
PROMPTS, PROMPT_TOKENS, WRITTEN_TOKENS = 100, 32, 20
MOST_NATS, LEAST_SAME, LEAST_FASTER = 0.03, 0.8, 1.5
JUDGE = 2
SHAPE = DecoderShape()

_INT4: Mapping[str, Any] = {"bits": 4, "group": 32, "head_bits": 8}
# Products of attention are fewer and suffer more; the table of tokens and the head are one layer each.
_ATTENTION = [f"/model/layers/{at}/attn/{name}/MatMul" for at in range(SHAPE.layers) for name in ("qkv_proj", "o_proj")]
_INT8: Mapping[str, Any] = {"bits": 8, "method": "rtn"}
RECIPES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "int4 g32, int8 head": [_INT4],
    "int4 g32, int8 head, products alone": [{**_INT4, "operators": ["MatMul"]}],
    "int4 g32, int8 head, rounded to nearest": [{**_INT4, "method": "rtn"}],
    "int4 g32 in the products of the feed-forward parts, int8 elsewhere": [
        {"bits": 4, "group": 32, "operators": ["MatMul"], "exclude": [*_ATTENTION, "/lm_head/MatMul"]},
        _INT8,
    ],
    "int8, rounded to nearest": [_INT8],
}


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoder", description=__doc__)
    parser.add_argument("--network", type=Path, metavar="DIR", default=REPOSITORY / "var" / "networks" / "decoder")
    parser.add_argument("--quick", action="store_true", help="few prompts and one recipe: a trial, no result")
    parser.add_argument("--only", choices=list(RECIPES), metavar="RECIPE", help=f"one of: {'; '.join(RECIPES)}")
    options = parser.parse_args()
    if not (options.network / "data.npz").exists():
        print(f"{options.network} holds no decoder: run benchmarks/networks/decoder.py first", file=sys.stderr)
        return 1
    names = [options.only] if options.only else list(RECIPES)[:1] if options.quick else list(RECIPES)
    prompts = _prompts(options.network, 10 if options.quick else PROMPTS)
    original = _write(options.network, prompts, SCRATCH / "original")
    results = {name: _measure(name, options.network, prompts, original) for name in names}
    trained = json.loads((options.network / "network.json").read_text())
    markdown = _markdown(results, trained, len(prompts["held_out"]))
    documents.store(
        GROUP, "decoder", {"network": trained, "original": original, "entries": results}, markdown, quick=options.quick
    )
    print(markdown)
    return 0


def _prompts(folder: Path, count: int) -> dict[str, list[list[int]]]:
    """Beginnings of texts that the decoder has learnt from, and of texts that it has not seen."""
    data = np.load(folder / "data.npz")
    chosen = {"training": data["part"] == 0, "held_out": data["part"] == JUDGE}
    return {name: data["input_ids"][rows][:count, :PROMPT_TOKENS].tolist() for name, rows in chosen.items()}


def _write(folder: Path, prompts: Mapping[str, list[list[int]]], scratch: Path) -> dict[str, Any]:
    request = {"folder": str(folder.resolve()), "count": WRITTEN_TOKENS}
    script = Path(genai_write.__file__)
    found: dict[str, Any] = {}
    for name, some in prompts.items():
        spent = spend(Path(sys.executable), script, {**request, "prompts": some}, scratch / name)
        if spent.problem:
            raise RuntimeError(f"onnxruntime-genai: {spent.problem}; its log is in {scratch / name}")
        found[name] = dict(spent.value)
    return found


def _measure(
    name: str, folder: Path, prompts: Mapping[str, list[list[int]]], original: Mapping[str, Any]
) -> dict[str, Any]:
    scratch = SCRATCH / name.replace(" ", "_").replace(",", "")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    # A gate on size: what a recipe costs in quality is to be seen, not refused.
    gates = [
        {"metric": "size_bytes", "rule": "max_ratio", "value": 0.9},
        {"metric": "nats_per_token", "rule": "max_drop", "value": MOST_NATS, "level": "warn"},
    ]
    spec = {"recipe": {"passes": [{"type": "quantize_weights", **each} for each in RECIPES[name]]}, "gates": gates}
    request = {
        "model": str((folder / "model.onnx").resolve()),
        "data": str((folder / "data.npz").resolve()),
        "metric": "perplexity",
        "spec": spec,
        "out": str(scratch / "model.onnx"),
    }
    spent = spend(Path(sys.executable), Path(engine_job.__file__), request, scratch / "job")
    if spent.problem:
        return {"problem": spent.problem}
    report = json.loads((scratch / "report.json").read_text())
    complete(folder / "model.onnx", scratch / "model.onnx")
    written = _write(scratch, prompts, scratch / "written")
    quality = {each["metric"]: each for each in report["quality"] if each["output"] == "logits"}
    return {
        "steps": spent.value["steps"],
        "seconds": spent.seconds,
        "peak_rss_bytes": spent.peak_rss_bytes,
        "size": report["size"],
        "nats": quality["nats_per_token"],
        "token_agreement": quality["token_agreement"]["compressed"],
        "kl": quality["kl"]["compressed"],
        "generation": report["generation"],
        "same": {name: _same(original[name]["written"], some["written"]) for name, some in written.items()},
        "written": written,
    }


def _same(original: list[list[int]], compressed: list[list[int]]) -> float:
    return sum(left == right for left, right in zip(original, compressed, strict=True)) / len(original)


def _markdown(results: Mapping[str, Mapping[str, Any]], trained: Mapping[str, Any], prompts: int) -> str:
    lines = [
        f"### Decoder of {trained['parameters'] / 1e6:.1f} M parameters",
        "",
        (
            f"Trained on manual pages for {trained['steps']:,} steps: {trained['training_nats_per_token']:.2f} nats per token of the"
            f" text that it learnt from, {trained['held_out_nats_per_token']:.2f} of other text. Nats are of held-out text, paired;"
            f' "same text" is the share of {prompts} prompts of {PROMPT_TOKENS} tokens after which onnxruntime-genai writes the same'
            f" {WRITTEN_TOKENS} tokens with both networks, for held-out and for learnt text. Bars: at most {MOST_NATS} nats,"
            f" {LEAST_SAME:.0%} the same text, {LEAST_FASTER}x tokens written per second."
        ),
        "",
        (
            "| recipe | smaller | nats per token | 95 % | next token stays | same text: held out | learnt | read | written"
            " | seconds |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        if "problem" in found:
            lines.append(f"| {name} | {found['problem']} |")
            continue
        nats, speed = found["nats"], found["generation"]
        interval = nats["interval"]
        factors = [1 / speed[load]["ratio"]["value"] for load in ("prefill", "decode")]
        doubt = [" (by CPU time)" if speed[load]["clock"] == "cpu" else "" for load in ("prefill", "decode")]
        lines.append(
            f"| {name} | {found['size']['original'] / found['size']['compressed']:.2f}x"
            f" | {nats['original']:.4f} -> {nats['compressed']:.4f} ({nats['difference']:+.4f})"
            f" | {interval['low']:+.4f} to {interval['high']:+.4f} | {found['token_agreement']:.1%}"
            f" | {found['same']['held_out']:.0%} | {found['same']['training']:.0%}"
            f" | {factors[0]:.2f}x, {speed['prefill']['compressed_tokens_per_s']:,.0f}/s{doubt[0]}"
            f" | {factors[1]:.2f}x, {speed['decode']['compressed_tokens_per_s']:,.0f}/s{doubt[1]}"
            f" | {found['seconds'] or math.nan:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
