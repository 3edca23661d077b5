"""The recipe that makes a point's network, so that any point can be made later by an ordinary compression."""

from typing import Any

from engine.search.architecture import Architecture
from engine.search.options import PASS_OF
from engine.search.values import Level, Option, Point

# Shorter training shows nothing.
LEAST_TRAIN_S = 1.0
# Of these layers are refitted where candidates are many: more cost time and move the ranking little.
_FIT_SAMPLES = 256
_BITS = {"weights8": 8, "weights4": 4}
_QUANTIZED = frozenset({"static", "dynamic", *_BITS})


def recipe_of(
    point: Point, architecture: Architecture, *, train_s: float = 0.0, level: Level = "refit", seed: int = 0
) -> tuple[dict[str, Any], ...]:
    """Give the bodies of the passes that make a point, in their order.

    At the level `full`, channels go in several rounds, layers are refitted on all samples and integers are refined on those to
    choose by; at the others that is left out for the time it takes.
    """
    point = architecture.normalise(point)
    passes: list[dict[str, Any]] = [{"type": "simplify"}, {"type": "fuse"}]
    fewer = {} if level == "full" else {"samples": _FIT_SAMPLES}
    if point.dropped:
        passes.append({"type": "drop_blocks", "exactly": list(point.dropped)})
        # Steps that cut refit what they cut. A branch that is gone only shows to the layers behind it, and these make up for it
        # as long as they have all of their channels: afterwards there is little left to make up with.
        passes.append({"type": "reconstruct", **fewer})
    if point.widths:
        rounds = {} if level == "full" else {"rounds": 1}
        passes.append({"type": "prune_channels", "widths": _by_what_stays(point, architecture), **rounds, **fewer})
    if point.ranks:
        passes.append({"type": "factorise", "ranks": dict(point.ranks)})
    if train_s >= LEAST_TRAIN_S:
        passes.append({"type": "distill", "seconds": float(train_s), "flip": architecture.space.flip, "seed": seed})
    if point.precision in _QUANTIZED and _has_heads(point, architecture):
        # What the runtime has one operator for can no more be cut or trained, as integers cannot.
        passes.append({"type": "fuse", "attention": True})
    if point.precision != "float32":
        passes.append(_precision(point, careful=level == "full"))
    return tuple({**step, **_options(str(step["type"]), point.options)} for step in passes)


def _has_heads(point: Point, architecture: Architecture) -> bool:
    gone = architecture.gone(point)
    return any(each.kind == "heads" and not gone.issuperset(each.producers) for each in architecture.groups.values())


def _by_what_stays(point: Point, architecture: Architecture) -> dict[str, int]:
    """Name groups by a layer that is still there when the point's branches are gone."""
    gone, found = architecture.gone(point), {}
    for name, kept in point.widths.items():
        group = architecture.groups[name]
        lasting = next(layer for layer in group.producers if layer not in gone)
        stays = group.named_after not in gone
        found[name if stays else f"{group.kind}:{lasting}"] = kept
    return found


def _precision(point: Point, *, careful: bool) -> dict[str, Any]:
    step: dict[str, Any] = {"type": PASS_OF[point.precision]}
    if point.precision != "float16":
        step["exclude"] = list(point.in_float)
    if point.precision == "static":
        # The search itself says which layers stay in float.
        step |= {"improve": careful, "measure_layers": False}
    if point.precision in _BITS:
        step["bits"] = _BITS[point.precision]
    return step


def _options(name: str, options: dict[str, Option]) -> dict[str, Option]:
    return {
        field: value for full, value in options.items() for owner, _, field in [full.partition(".")] if owner == name
    }
