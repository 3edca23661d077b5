"""One streaming run over the calibration data feeds every statistic that the passes asked for."""

from engine.calibrate.observe import observe
from engine.calibrate.statistics import ChannelMean, ChannelRange, Histogram, MinMax, Range, Statistic, statistic

__all__ = [
    "ChannelMean",
    "ChannelRange",
    "Histogram",
    "MinMax",
    "Range",
    "Statistic",
    "observe",
    "statistic",
]
