"""Which clock counts where two networks were timed in turn: one rule for gates, steps, races, the headline and the tables.

The wall's clock is what a user waits for, so it counts wherever the machine was quiet enough. Where it was not, the
processor's clock counts, which stands still while others run. Where there is no such clock, beside a GPU, the wall's has to
do, and only an effect beside which the noise is nothing is decided by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.report.values import Clock, Interval, LatencyComparison, Ratio

# A disturbed clock that no other one confirms decides where the effect is so many times as large as all that is not known.
BY_WALL_ALONE = 3.0


@dataclass(frozen=True)
class CountedTime:
    """The ratio that counts, compressed / original, and what the original beside itself reads by the same clock.

    `quiet`: it was measured by the wall's clock on a machine that was quiet enough.
    """

    clock: Clock
    ratio: Ratio
    noise: Interval
    quiet: bool

    @property
    def faster(self) -> bool:
        """Whether less time is taken, beyond the ratio's interval and beyond what the original differs from itself."""
        return self.ratio.interval.high < min(1.0, self.noise.low)

    def slower(self, than: float = 1.0) -> bool:
        """Say whether more than so many times the original's time is taken, and more than it beyond noise."""
        return self.ratio.value > than and self.ratio.interval.low > max(1.0, self.noise.high)

    @property
    def said(self) -> str:
        """Say which clock it is where that is not the wall's on a quiet machine; else nothing."""
        if self.clock == "cpu":
            return " by CPU time, because the machine was busy"
        return "" if self.quiet else ", measured on a busy machine"


def clock_that_counts(cpu_ratio: Ratio | None, *, stable: bool) -> Clock:
    """Give the wall's clock where the measurement was stable, else the processor's where there is one."""
    return "wall" if stable or cpu_ratio is None or cpu_ratio.value <= 0 else "cpu"


def by_one_clock(comparisons: Sequence[LatencyComparison]) -> list[float]:
    """Give the ratios of several networks to one original, to be compared with each other: all by the same clock."""
    by_cpu = [each.cpu_ratio.value for each in comparisons if each.cpu_ratio is not None and each.cpu_ratio.value > 0]
    if len(by_cpu) == len(comparisons) and any(each.counts == "cpu" for each in comparisons):
        return by_cpu
    return [each.ratios["p50"].value for each in comparisons]


def counted(latency: LatencyComparison) -> CountedTime:
    """Give what counts of a comparison, of p50: no other statistic was read by the processor's clock."""
    cpu = latency.cpu_ratio
    if latency.counts == "wall" or cpu is None:
        return CountedTime("wall", latency.ratios["p50"], latency.noise_floor, latency.stable)
    return CountedTime("cpu", cpu, latency.cpu_noise_floor or Interval(low=1.0, high=1.0), quiet=False)


def far_faster(latency: LatencyComparison) -> bool:
    """Say whether p50 on a busy machine is below the original's by so much that its noise is nothing beside it, as gates do."""
    time = counted(latency)
    read = [(latency.ratios["p50"], latency.noise_floor)]
    read += [(time.ratio, time.noise)] if time.clock == "cpu" else []
    margin = 1.0 if time.clock == "cpu" else BY_WALL_ALONE

    def highest(ratio: Ratio, noise: Interval) -> float:
        beyond: float = (ratio.interval.high * max(noise.high, 1.0) / ratio.value) ** margin
        return ratio.value * beyond

    return all(highest(ratio, noise) < min(1.0, noise.low) for ratio, noise in read)
