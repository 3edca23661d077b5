"""Reports of searches, as the engine writes them: for tests of what is shown of one."""

from engine.gate import Gate
from engine.goal import Budget, Goal
from engine.report.search import (
    Certificate,
    Certificates,
    Counts,
    FrontPoint,
    LimitStanding,
    Measured,
    MeasuredQuality,
    Miss,
    NearPoint,
    Point,
    Predicted,
    SearchReport,
    StoryLine,
)

LOSS = Gate(metric="top1", rule="max_drop", value=0.01)
SIZE = Gate(metric="size_bytes", rule="max", value=200_000)


def measured(ratio: float, size: int, lost: float) -> Measured:
    """Give what was measured of a candidate."""
    quality = MeasuredQuality(metric="top1", output="logits", original=0.91, compressed=0.91 - lost, difference=-lost)
    return Measured(
        size_bytes=size,
        macs=1_000_000,
        parameters=50_000,
        latency_ratio=ratio,
        latency_low=ratio - 0.01,
        latency_high=ratio + 0.01,
        quality=(quality,),
    )


def search_report(*, met: bool = True) -> SearchReport:
    """Give a search of three trials: one goes beyond a limit, one failed, one made the result."""
    uniform = measured(0.4, 150_000, 0.031)
    solved = measured(0.5, 180_000 if met else 240_000, 0.004)
    predicted = Predicted(latency_ratio=0.48, size_bytes=181_000, macs=1_000_000, damage=0.02)
    story = (
        StoryLine(
            trial=1,
            round=1,
            level="refit",
            tried="half of the channels | refitted",
            because="solver: uniform",
            state="succeeded",
            measured=uniform,
            holds=False,
            kept=False,
            why="top1 falls by 3.1 points, 1 is allowed",
        ),
        StoryLine(
            trial=2,
            round=1,
            level="refit",
            tried="2 blocks dropped",
            because="solver",
            state="failed",
            kept=False,
            why="the process ended",
        ),
        StoryLine(
            trial=3,
            round=2,
            level="full",
            tried="INT8, 3 groups narrower",
            because="the best of round 1, distilled",
            state="succeeded",
            predicted=predicted,
            measured=solved,
            holds=met,
            kept=True,
            why="the fastest within the limits" if met else "comes nearest",
        ),
    )
    point = FrontPoint(
        trial=3,
        point=Point(widths={"g1": 8}, precision="static"),
        level="full",
        tried="INT8, 3 groups narrower",
        recipe=({"type": "simplify"}, {"type": "prune_channels", "widths": {"g1": 8}}, {"type": "quantize_static"}),
        predicted=predicted,
        measured=solved,
        holds=met,
    )
    limit = "size at most 200 kB"
    miss = Miss(limit=limit, gate=SIZE, measured=240_000.0, by=0.2)
    return SearchReport(
        goal=Goal(minimise="latency", subject_to=(LOSS, SIZE)),
        strategy="auto",
        seed=7,
        budget=Budget(max_seconds=600.0, max_trials=60),
        seconds=321.0,
        trials=Counts(succeeded=2, failed=1),
        stopped="The budget of 600 s is spent.",
        chosen=3,
        met=met,
        story=story,
        front=(point,),
        nearest=() if met else (NearPoint(trial=3, tried=point.tried, measured=solved, misses=(miss,)),),
        limits=(
            LimitStanding(
                gate=SIZE,
                limit=limit,
                held_by=2 if met else 1,
                best=150_000.0,
                best_trial=1,
                limited_by="narrower layers lose more than 1 point",
            ),
        ),
        certificates=Certificates(
            compared=(Certificate(trial=3, predicted=0.48, measured=0.5, error=0.04),), median_error=0.04
        ),
    )
