"""One streaming run over the calibration data feeds every statistic that the passes asked for."""

from engine.calibrate.observe import observe
from engine.calibrate.statistics import STATISTICS, MinMax, Range, Statistic

__all__ = ["STATISTICS", "MinMax", "Range", "Statistic", "observe"]
