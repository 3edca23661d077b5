"""What the processor can do for a quantized network."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Dot = Literal["none", "avx2", "avx_vnni", "avx512_vnni", "amx", "neon_dot", "neon_i8mm"]

# Those that change which kernels onnxruntime runs, as Linux spells them (x86, then ARM).
_FLAGS_THAT_MATTER = (
    "sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx_vnni", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip

# Best first: the instruction that multiplies 8-bit integers.
_DOT_BY_FLAG: tuple[tuple[str, Dot], ...] = (
    ("amx_int8", "amx"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx_vnni", "avx_vnni"),
    ("avx2", "avx2"),
    ("i8mm", "neon_i8mm"),
    ("asimddp", "neon_dot"),
)


@dataclass(frozen=True)
class CpuProfile:
    """A processor as quantization sees it. Made by `cpu_profile()`, or by hand for a target that is elsewhere."""

    name: str
    flags: tuple[str, ...]
    cores: int
    dot: Dot

    @property
    def saturates_u8s8(self) -> bool:
        """True where unsigned times signed 8 bit is added up in pairs to a *saturating* 16-bit number.

        That is vpmaddubsw, which AVX2 and AVX-512 without VNNI use: 255 * 127 * 2 does not fit, so large weights give wrong
        sums. VNNI and ARM accumulate in 32 bits; SSE kernels widen to 16 bit before they multiply.
        """
        return self.dot == "avx2"


def cpu_profile(cpuinfo: str | None = None) -> CpuProfile:
    """Read this machine's processor, or the one that a /proc/cpuinfo text describes."""
    text = _read_cpuinfo() if cpuinfo is None else cpuinfo
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())  # the first processor speaks for all
    present = frozenset((fields.get("flags") or fields.get("Features") or _flags_without_cpuinfo()).split())
    return CpuProfile(
        name=fields.get("model name") or _arm_name(fields) or platform.processor() or platform.machine(),
        flags=tuple(flag for flag in _FLAGS_THAT_MATTER if flag in present),
        cores=_usable_cores(),
        dot=next((dot for flag, dot in _DOT_BY_FLAG if flag in present), "none"),
    )


def threads() -> int:
    """Give how many threads heavy work takes that is not measured: the usable cores, or fewer where OMP_NUM_THREADS says so.

    BLAS, in which the solvers compute, obeys the same variable.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(_usable_cores(), int(asked))) if asked.isdecimal() and int(asked) else _usable_cores()


def _read_cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _flags_without_cpuinfo() -> str:
    """Give what the architecture alone promises. AVX2 is assumed on x86: it is the cautious guess, because it saturates."""
    machine = platform.machine().lower()
    if machine in {"arm64", "aarch64"}:
        return "asimd asimddp" if platform.system() == "Darwin" else "asimd"
    return "avx2" if machine in {"x86_64", "amd64"} else ""


def _arm_name(fields: dict[str, str]) -> str:
    implementer, part = fields.get("CPU implementer"), fields.get("CPU part")
    return f"ARM implementer {implementer} part {part}" if implementer and part else ""


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
