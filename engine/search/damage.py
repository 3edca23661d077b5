"""Damage: one number of how far a network is from the original, that adds up over independent changes while it is small."""

from collections.abc import Mapping, Sequence

from engine.gate import LOWER_IS_BETTER, TASK_METRICS
from engine.measure.acceptance import broken_beside_main, main_metrics, noise_share
from engine.report.values import Quality

# Metrics that are shares: what is lost of them counts as it is, of others as a share of the original's.
_SHARES = frozenset({"top1", "top5", "f1", "iou"})


def damage_of(quality: Sequence[Quality]) -> float | None:
    """Give the damage of a network by its quality on some samples; None where nothing was compared.

    It is the divergence from the original (KL in nats where the main output scores classes, else the share of noise in the
    outputs: both grow with the square of a small change, so they add up over changes that have nothing to do with each
    other) plus what the task's metric surely lost: by the end of its interval that is nearer to nothing, because a metric of
    a few hundred samples jumps by more than most changes cost. Infinite where another output fell under its kind's floor.
    """
    if not quality:
        return None
    if broken_beside_main(quality) is not None:
        return float("inf")
    main = main_metrics(quality)
    divergence = main["kl"].compressed if "kl" in main else noise_share(quality)
    return max(divergence, 0.0) + _surely_lost(main)


def _surely_lost(main: Mapping[str, Quality]) -> float:
    task = next((main[name] for name in TASK_METRICS if name in main and main[name].difference is not None), None)
    if task is None:
        return 0.0
    lost = task.interval.low if task.metric in LOWER_IS_BETTER else -task.interval.high
    scale = 1.0 if task.metric in _SHARES else max(abs(task.original or 0.0), 1e-9)
    return max(lost, 0.0) / scale
