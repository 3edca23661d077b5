"""What a search tells of itself: figures that bars are held to, and lines that a person reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.bars import Measured
from benchmarks.contest import Result
from benchmarks.documents import seconds

RANDOM = "random"
"""Settings of searches that take their candidates by chance end like that."""
_NO_GAIN, _WORST_LOSS = 1.0, 0.1
# Limits that are told where a goal is not met.
_MOST_TOLD = 3


def searched(result: Result) -> Mapping[str, Any] | None:
    """Give the report of a search; None where a result is none."""
    found: Mapping[str, Any] | None = result.told.get("search")
    return found


# Figures


def prediction_error(result: Result, _results: Sequence[Result]) -> float | None:
    """Give the median of |predicted - measured| / measured over the latencies of composed networks."""
    search = searched(result)
    return None if search is None else search["certificates"]["median_error"]


def of_budget(result: Result, _results: Sequence[Result]) -> float | None:
    """Give the time of the whole job, its final report included, as a share of the seconds that it might take."""
    search = searched(result)
    return None if search is None else result.told["seconds"] / search["budget"]["max_seconds"]


def nearest(result: Result, _results: Sequence[Result]) -> float | None:
    """Give how many points a search names that come near a goal which none holds; None where it claims to hold it."""
    search = searched(result)
    if search is None or search["met"]:
        return None
    return float(len([point for point in search["nearest"] if point["misses"]]))


def explained(result: Result, _results: Sequence[Result]) -> float | None:
    """Give the share of limits of which a search says what stands against going on."""
    search = searched(result)
    limits = () if search is None else search["limits"]
    return sum(bool(each["limited_by"].strip()) for each in limits) / len(limits) if limits else None


def same_candidates_as(setting: str) -> Measured:
    """Give the figure that says how far two searches went the same way.

    It is the share of the shorter's trials, from the first on, that are of the same candidate at the same level.
    """

    def measured(result: Result, results: Sequence[Result]) -> float | None:
        other = next((each for each in results if each.setting == setting and each.maker == result.maker), None)
        one, two = candidates(result), [] if other is None else candidates(other)
        shorter = min(len(one), len(two))
        if not shorter:
            return None
        alike = next((at for at in range(shorter) if one[at] != two[at]), shorter)
        return alike / shorter

    return measured


def beside_random(result: Result, results: Sequence[Result]) -> float | None:
    """Give the hypervolume of a search's front as a share of that which candidates by chance have."""
    other = next((each for each in results if each.setting.endswith(RANDOM)), None)
    own, chance = front_hypervolume(result), None if other is None else front_hypervolume(other)
    return own / chance if own is not None and chance else None


def candidates(result: Result) -> list[tuple[str, str]]:
    """Give what a search tried, in its order: the level and the candidate in words."""
    search = searched(result)
    return [] if search is None else [(line["level"], line["tried"]) for line in search["story"]]


def front_hypervolume(result: Result) -> float | None:
    """Give the area that all measured candidates dominate, of loss up to 10 points and latency up to the original's.

    In shares of that rectangle; loss is that of the first metric of quality, gains count as none.
    """
    search = searched(result)
    if search is None:
        return None
    measured = [line["measured"] for line in search["story"] if line["measured"] is not None]
    points = [
        (each["latency_ratio"], max(0.0, -(each["quality"][0]["difference"] or 0.0)))
        for each in measured
        if each["latency_ratio"] is not None and each["quality"]
    ]
    return hypervolume(points, (_NO_GAIN, _WORST_LOSS))


def hypervolume(points: Sequence[tuple[float, float]], worst: tuple[float, float]) -> float:
    """Give the area between points that are to be small and the worst point, as a share of the rectangle down to 0."""
    area, reached = 0.0, worst[1]
    for first, second in sorted(points):
        if first < worst[0] and second < reached:
            area += (worst[0] - first) * (reached - second)
            reached = second
    return area / (worst[0] * worst[1])


# Lines


def lines(results: Sequence[Result]) -> list[str]:
    """Say of each search what it tried, what it chose and why it ended."""
    return [f"{each.name}: {'; '.join(_told(each))}." for each in results if searched(each) or "trials" in each.told]


def _told(result: Result) -> Iterator[str]:
    search = searched(result)
    if search is None:
        yield f"{result.told['trials']} networks evaluated; chose {' > '.join(result.told['passes'])}"
        return
    trials = search["trials"]
    yield f"{trials['succeeded']} trials in {seconds(result.told['seconds'])}, {trials['failed']} failed"
    chosen = next((line for line in search["story"] if line["trial"] == search["chosen"]), None)
    yield "kept the original" if chosen is None else f"chose trial {chosen['trial']}: {chosen['tried'].rstrip('.')}"
    error = search["certificates"]["median_error"]
    if error is not None:
        compared = len(search["certificates"]["compared"])
        yield f"latency predicted within {100 * error:.1f} % (median of {compared})"
    area = front_hypervolume(result)
    if area:
        yield f"hypervolume {area:.3f}"
    if not search["met"]:
        reasons = [
            f"{each['limit']}: {each['limited_by'].rstrip('.')}" for each in search["limits"] if not each["held_by"]
        ]
        yield from ("the goal is not met", *reasons[:_MOST_TOLD])
    yield f"ended because {search['stopped'].rstrip('.')}"
