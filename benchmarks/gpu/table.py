"""The jobs of the GPU benchmark: each pass that is for every network, and profiles, on both networks."""

from dataclasses import dataclass, field
from typing import Any

# What a network of random weights is held to: the floors of its kind are about decisions, and it makes none.
_GATES = ({"metric": "sqnr_db", "rule": "min", "value": 20.0},)
_TUNE_S = 8.0
_MEASURE_S = 2.0
# The bars are set at these.
BATCHES = {"resnet50": 32, "bert_base": 16}


@dataclass(frozen=True)
class Entry:
    """One job of the table. `batch`: None for one sample at a time."""

    name: str
    network: str
    passes: tuple[dict[str, Any], ...] = ()
    batch: int = 1
    tune: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def spec(self, provider: str) -> dict[str, Any]:
        """Give the job's spec for a provider."""
        target = {"provider": provider, "batch": self.batch}
        tune = {"tune": {"max_seconds": _TUNE_S}} if self.tune else {}
        if not self.passes:
            return {"kind": "profile", "targets": [target], "measure_seconds": _MEASURE_S, **tune, **self.more}
        return {"recipe": {"passes": list(self.passes)}, "target": target, "gates": list(_GATES), **tune, **self.more}


def entries() -> list[Entry]:
    """Give all jobs; those that bars are set on come first, for when time is short."""
    found = []
    for network, batch in BATCHES.items():
        # Of a transformer's many small operators fewer are left to start, in float32 as in float16.
        first = {"type": "fuse" if network == "bert_base" else "simplify"}
        found.append(Entry("float16", network, (first, {"type": "float16"}), batch=batch, tune=True))
        found.append(Entry("simplify", network, ({"type": "simplify"},)))
    found += [each for one in zip(*map(_others, BATCHES), strict=True) for each in one]
    return found


def _others(network: str) -> list[Entry]:
    """Give the jobs that no bar is set on, those of a few seconds first."""
    return [
        Entry("fuse", network, ({"type": "fuse"},)),
        Entry("quantize_dynamic", network, ({"type": "quantize_dynamic"},)),
        Entry("quantize_weights", network, ({"type": "quantize_weights", "method": "rtn"},)),
        Entry("profile", network),
        Entry("tune", network, batch=BATCHES[network], tune=True),
        Entry("quantize_static", network, ({"type": "quantize_static", "improve": False},)),
        # Which channels go, and layers fitted again, matter where weights say something.
        Entry(
            "prune_channels", network, ({"type": "prune_channels", "importance": "magnitude", "reconstruct": False},)
        ),
    ]
