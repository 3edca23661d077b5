"""A table of jobs on a GPU: every pass on ResNet-50 and BERT-base, and float16 beside float32 with the best options of both.

    python -m benchmarks.gpu [--provider cuda] [--seconds 290] [--jobs 4] [--only NAME[/NETWORK] ...] [--small]

Needs a machine with the provider (see docs/targets.md), torch, torchvision and transformers; it makes the networks itself.
Jobs run side by side and measure one at a time, as those of a worker do. What does not end within `--seconds` is left out, and the
table says so.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import documents, process
from benchmarks.gpu.table import BATCHES, Entry, entries
from engine.runtime.discovery import available_targets

_ROOT = Path(__file__).resolve().parents[2]
_JOB = Path(__file__).with_name("job.py")
# A bar of float16: so many times as fast as float32, each with its best options.
BAR = 1.8
# No job is begun for less.
_LEAST_S = 25.0


def main() -> int:
    """Entry point; 1 where a job failed or a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--seconds", type=float, default=290.0, help="none ends later")
    parser.add_argument("--jobs", type=int, default=4, help="at the same time")
    parser.add_argument("--only", nargs="+", default=[], help="names of jobs, or NAME/NETWORK, in this order")
    parser.add_argument("--networks", type=Path, default=_ROOT / "var" / "networks" / "gpu")
    parser.add_argument("--small", action="store_true", help="small networks, to see that everything works")
    options = parser.parse_args()
    started = time.monotonic()
    place = available_targets([options.provider])[0]
    if not place.available:
        print(f"{options.provider} does not run here: {place.reason}")
        return 1
    networks = options.networks / ("small" if options.small else "full")
    folder = documents.RESULTS / ("trial" if options.small else ".") / "gpu"
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    chosen = _chosen(options.only)
    wanted = list(dict.fromkeys(each.network for each in chosen))
    with ThreadPoolExecutor(len(wanted)) as pool:
        made = list(pool.map(lambda each: _make(each, networks, small=options.small), wanted))
    making = dict(zip(wanted, made, strict=True))
    print(f"networks: {making} after {time.monotonic() - started:.0f} s", flush=True)

    def run(entry: Entry) -> dict[str, Any]:
        if making[entry.network] is not None:
            return {"problem": f"the network was not made: {making[entry.network]}"}
        return _run(entry, options, networks, folder, started)

    # Those with a bar run alone: a job beside them would take its time from theirs.
    results = {_label(each): run(each) for each in chosen if each.tune and each.passes}
    others = [each for each in chosen if _label(each) not in results]
    with ThreadPoolExecutor(options.jobs) as pool:
        results |= dict(zip(map(_label, others), pool.map(run, others), strict=True))
    found = list(results.values())
    content = {"gpu": vars(place), "results": results, "seconds": round(time.monotonic() - started, 1)}
    text = _markdown(chosen, results, content)
    documents.store("gpu", options.provider, content, text, quick=options.small)
    print(text)
    return int(any(one.get("problem") for one in found) or _missed(results))


def _chosen(only: list[str]) -> list[Entry]:
    if not only:
        return entries()
    named = [[each for each in entries() if name in {each.name, _label(each)}] for name in only]
    return list({_label(each): each for found in named for each in found}.values())


def _label(entry: Entry) -> str:
    return f"{entry.name}/{entry.network}"


def _make(network: str, networks: Path, *, small: bool) -> str | None:
    """Make a network where it is not there yet, in a process of its own: torch takes memory of the GPU."""
    if (networks / network / "data.npz").exists():
        return None
    command = [sys.executable, "-m", "benchmarks.gpu.networks", "--out", networks, "--only", network]
    done = subprocess.run(
        [*command, *(["--small"] if small else [])], capture_output=True, text=True, check=False, cwd=_ROOT
    )
    if done.returncode == 0:
        return None
    return next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")


def _run(entry: Entry, options: argparse.Namespace, networks: Path, folder: Path, started: float) -> dict[str, Any]:
    left = options.seconds - (time.monotonic() - started)
    if left < _LEAST_S:
        return {"left_out": True}
    out, source = folder / "jobs" / _label(entry).replace("/", "-"), networks / entry.network
    request = {
        "model": str(source / "model.onnx"),
        "data": str(source / "data.npz"),
        "spec": entry.spec(options.provider),
        "lock": str(folder / "lock"),
        "out": str(out),
    }
    spent = process.spend(Path(sys.executable), _JOB, request, out, timeout=left)
    if spent.timed_out:
        return {"left_out": True}
    seconds = None if spent.seconds is None else round(spent.seconds, 1)
    print(f"{_label(entry)}: {spent.problem or 'done'}, {seconds} s", flush=True)
    return {"problem": spent.problem, "seconds": seconds, "report": dict(spent.value)}


def _markdown(chosen: list[Entry], results: dict[str, dict[str, Any]], content: dict[str, Any]) -> str:
    gpu = content["gpu"]
    head = ("network", "batch", "job", "what came of it", "faster", "size", "GPU memory", "seconds")
    where = [gpu["gpu"] or gpu["cpu"]]
    where += [f"{name} {gpu[name.lower()]}" for name in ("driver", "CUDA", "cuDNN") if gpu[name.lower()]]
    lines = [
        f"### {where[0]}",
        "",
        documents.table(head, [_row(each, results[_label(each)]) for each in chosen]),
        "",
        *(_bar(network, results) for network in BATCHES if f"float16/{network}" in results),
        f"Weights are drawn at random. {', '.join(where)}. All jobs took {content['seconds']:.0f} s, side by side.",
    ]
    return "\n".join(lines)


def _row(entry: Entry, result: dict[str, Any]) -> tuple[str, ...]:
    report, first = result.get("report") or {}, (entry.network, str(entry.batch), entry.name)
    if not report:
        return (
            *first,
            "left out: time was over" if result.get("left_out") else f"FAILED: {result['problem']}",
            *[""] * 4,
        )
    told = (str(result["seconds"]),)
    if entry.passes:
        steps = "; ".join(f"{step['type']} {step['status']}{_reason(step)}" for step in report["steps"])
        memory, size = report["memory"], report["size"]
        return (
            *first,
            steps,
            _faster(report["latency"]),
            f"{size['original'] / size['compressed']:.2f}x smaller",
            _memory(memory["original"], memory["compressed"]) if memory else "",
            *told,
        )
    measured = report["targets"][0]["measured"]
    if measured is None:
        return (*first, report["targets"][0]["refusal"]["reason"], "", "", "", *told)
    tuning = measured["tuning"]
    said = f"p50 {measured['latency']['p50_ms']:.3f} ms" + (f"; {tuning['reason']}" if tuning else "")
    gain = f"{1 / tuning['gain']['value']:.2f}x" if tuning and tuning["gain"] else ""
    return (*first, said, gain, "", _memory(measured["memory"]), *told)


def _reason(step: dict[str, Any]) -> str:
    return f" ({step['refusal']['reason'].rstrip('.')})" if step["refusal"] else ""


def _faster(latency: dict[str, Any] | None) -> str:
    if latency is None:
        return ""
    ratio = latency["ratios"]["p50"]
    low, high = 1 / ratio["interval"]["high"], 1 / ratio["interval"]["low"]
    return f"{1 / ratio['value']:.2f}x ({low:.2f} to {high:.2f})" + ("" if latency["stable"] else ", not stable")


def _memory(*networks: dict[str, Any]) -> str:
    told = [each.get("device_peak_bytes") for each in networks]
    return "" if None in told else " -> ".join(map(documents.megabytes, told))


def _bar(network: str, results: dict[str, dict[str, Any]]) -> str:
    report = results[f"float16/{network}"].get("report") or {}
    if not report.get("latency"):
        return f"* float16 of {network} was not measured.\n"
    latency = report["latency"]
    before, after = latency["original"]["p50_ms"], latency["compressed"]["p50_ms"]
    kept = any(step["type"] == "float16" and step["status"] == "applied" for step in report["steps"])
    verdict = "reached" if kept and before / after >= BAR else "MISSED"
    return (
        f"* float16 of {network} at batch {BATCHES[network]}: {before:.3f} ms -> {after:.3f} ms, {_faster(latency)}, each with its best"
        f" options; at least {BAR}x is the bar: {verdict}. float32 ran with {_options(report, 'original')}, float16 with"
        f" {_options(report, 'compressed')}.\n"
    )


def _options(report: dict[str, Any], network: str) -> str:
    tuning = (report.get("tuning") or {}).get(network)
    chosen = tuning and tuning["chosen"]
    if not chosen:
        return "the target's own options"
    named = [f"`{name}={value}`" for name, value in chosen["provider_options"].items()]
    named += [f"fixed `{axis}={size}`" for axis, size in chosen["fixed_axes"].items()]
    named += ["inputs on the device"] if chosen["inputs_on_device"] else []
    named += [f"graph optimisation `{chosen['graph_optimization']}`"] if chosen["graph_optimization"] != "all" else []
    return ", ".join(named) or "the target's own options"


def _missed(results: dict[str, dict[str, Any]]) -> bool:
    return any("MISSED" in _bar(network, results) for network in BATCHES if f"float16/{network}" in results)


if __name__ == "__main__":
    sys.exit(main())
