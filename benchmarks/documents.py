"""Results as files: JSON with everything that was measured, and a Markdown section that is read."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import environments
from engine.runtime.environment import environment
from engine.runtime.processor import cpu_profile
from engine.target import Target

RESULTS = Path(__file__).resolve().parents[1] / "var" / "benchmarks"
KERNELS = "ONNXPRESS_BENCHMARK_KERNELS"


def group_here(group: str) -> str:
    """Give the name under which results of a group are kept, apart for a run that is held to older instructions.

    benchmarks.avx2 sets the variable.
    """
    kernels = os.environ.get(KERNELS)
    return f"{group}-{kernels}" if kernels else group


def store(group: str, name: str, content: Mapping[str, Any], markdown: str, *, quick: bool) -> None:
    """Write var/benchmarks/GROUP/NAME.json and .md; a later run of the same benchmark replaces them.

    Trials go to var/benchmarks/trial instead, where the report does not look.
    """
    folder = RESULTS / ("trial" if quick else ".") / group_here(group)
    folder.mkdir(parents=True, exist_ok=True)
    full = {"circumstances": circumstances(), **content}
    (folder / f"{name}.json").write_text(json.dumps(full, indent=1, default=str) + "\n")
    (folder / f"{name}.md").write_text(markdown.rstrip() + "\n\n" + _footer(full["circumstances"]) + "\n")


def circumstances() -> dict[str, Any]:
    """Say where, when, by which command and with which versions something was measured."""
    here = environment(Target(provider="cpu", threads=1, batch=1))
    profile = cpu_profile()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": _command(),
        "cpu": here.cpu,
        "cpu_flags": list(here.cpu_flags),
        "int8_instructions": profile.dot,
        "cores": here.cores,
        "system": here.system,
        "python": platform.python_version(),
        "onnxruntime": here.onnxruntime,
        "peers": {name: environments.version(name) for name in environments.NAMES},
    }


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def megabytes(size: float | None) -> str:
    """Give bytes as MB of 1e6."""
    return "" if size is None else f"{size / 1e6:,.2f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"


def seconds(value: float | None) -> str:
    """Give a duration."""
    return "" if value is None else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def _command() -> str:
    """Give the command line as it would be typed again."""
    inside = Path(sys.argv[0]).resolve().relative_to(Path(__file__).resolve().parents[1])
    parts = inside.parent.parts if inside.name == "__main__.py" else inside.with_suffix("").parts
    held = os.environ.get(KERNELS)
    module = "python -m " + (f"benchmarks.{held} {'.'.join(parts[1:])}" if held else ".".join(parts))
    return " ".join([module, *map(shlex.quote, sys.argv[1:])])


def _footer(facts: Mapping[str, Any]) -> str:
    flags = ", ".join(facts["cpu_flags"])
    return (
        f"{facts['date']}, `{facts['command']}`; {facts['cpu']}, {facts['cores']} cores ({flags}; 8-bit products by"
        f" {facts['int8_instructions']}), {facts['system']}, Python {facts['python']}, onnxruntime {facts['onnxruntime']}."
    )
