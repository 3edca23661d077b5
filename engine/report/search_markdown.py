"""A search, for people: what was tried and why it was kept or dropped, what there is to choose from, and what limits going on."""

from collections.abc import Iterator, Sequence

from engine.report.search import (
    Certificates,
    FrontPoint,
    LimitStanding,
    Measured,
    Miss,
    SearchReport,
    StoryLine,
)
from engine.report.wording import gate_value, limit_value, metric_change, speed_between, table
from engine.report.wording import size as size_text

# A long search has more trials than a person reads: the first and the last of them, and every one that was kept.
_MOST_LINES = 80
_MOST_PREDICTIONS = 16


def search_lines(search: SearchReport) -> Iterator[str]:
    """Yield the sections of a search's report."""
    yield from ("", "## The search", "", _asked(search), "", _ended(search))
    if not search.met:
        yield from ("", "The result is not shown to hold every limit on the samples that judge; the gates say which.")
    yield from _story(search.story, search.chosen)
    yield from _front(search.front, search.chosen)
    yield from _nearest(search)
    yield from _limits(search.limits)
    yield from _certificates(search.certificates)


def _asked(search: SearchReport) -> str:
    goal = search.goal
    limits = ", ".join(
        f"{gate.label} {gate.rule} {gate_value(gate.metric, gate.rule, gate.value)}" for gate in goal.subject_to
    )
    within = f", within {limits}" if limits else ", without any limit"
    may = []
    if search.budget.max_seconds is not None:
        may.append(f"{search.budget.max_seconds:.0f} s")
    if search.budget.max_trials is not None:
        may.append(f"{search.budget.max_trials} candidates")
    budget = f" It could take {' and '.join(may)}." if may else ""
    return f"The least {goal.minimise}{within}.{budget} Strategy `{search.strategy}`, seed {search.seed}."


def _ended(search: SearchReport) -> str:
    counts = search.trials
    lost = "".join(
        f", {count} {word}" for count, word in ((counts.failed, "failed"), (counts.cancelled, "given up")) if count
    )
    chosen = (
        "The original is the best there is." if search.chosen is None else f"Trial {search.chosen} made the result."
    )
    stopped = search.stopped.rstrip(".")
    one = counts.succeeded == 1
    measured = f"{counts.succeeded} {'candidate was' if one else 'candidates were'} measured"
    return f"{measured}{lost}, in {search.seconds:.0f} s. {stopped}. {chosen}"


def _story(lines: Sequence[StoryLine], chosen: int | None) -> Iterator[str]:
    if not lines:
        return
    shown = _shown(lines)
    yield from ("", "### What was tried", "")
    yield "Quality is on the samples to choose by. Trials of one round were chosen from what the rounds before had measured."
    yield ""
    head = (
        "trial",
        "round",
        "what was tried",
        "because",
        "predicted",
        "measured",
        "holds every limit",
        "kept or dropped, and why",
    )
    yield from table(head, (_story_row(line, chosen) for line in shown))
    if len(shown) < len(lines):
        yield from ("", f"And {len(lines) - len(shown)} more that were dropped, in report.json.")


def _shown(lines: Sequence[StoryLine]) -> list[StoryLine]:
    if len(lines) <= _MOST_LINES:
        return list(lines)
    dropped = [line.trial for line in lines if not line.kept]
    room = max(2, _MOST_LINES - (len(lines) - len(dropped)))
    told = {*dropped[: room // 2], *dropped[-(room // 2) :]}
    return [line for line in lines if line.kept or line.trial in told]


def _story_row(line: StoryLine, chosen: int | None) -> tuple[str, ...]:
    number = f"**{line.trial}**" if line.trial == chosen else str(line.trial)
    predicted = (
        ""
        if line.predicted is None
        else f"{speed_between(line.predicted.latency_ratio)}, {size_text(line.predicted.size_bytes)}"
    )
    measured = line.state if line.measured is None else _measured(line.measured)
    kept = f"{'kept' if line.kept else 'dropped'}: {line.why}"
    return number, str(line.round), line.tried, line.because, predicted, measured, _holds(line.holds), kept


def _front(points: Sequence[FrontPoint], chosen: int | None) -> Iterator[str]:
    if not points:
        return
    yield from ("", "### What there is to choose from", "")
    yield "No other candidate beats one of these in everything. Each is made, without another search, by `onnxpress pick JOB TRIAL`."
    yield ""
    head = ("trial", "what it is", "time", "size", "quality", "predicted", "holds every limit", "")
    yield from table(head, (_front_row(point, chosen) for point in points))
    yield from ("", "<details><summary>The recipes that make them</summary>", "")
    for point in points:
        steps = ", ".join(f"`{step.get('type')}`" for step in point.recipe)
        yield f"* {point.trial}: {steps or 'the network as it is'}"
    yield from ("", "</details>")


def _front_row(point: FrontPoint, chosen: int | None) -> tuple[str, ...]:
    predicted = (
        ""
        if point.predicted is None
        else f"{speed_between(point.predicted.latency_ratio)}, {size_text(point.predicted.size_bytes)}"
    )
    return (
        str(point.trial),
        point.tried,
        _time(point.measured),
        size_text(point.measured.size_bytes),
        _quality(point.measured),
        predicted,
        _holds(point.holds),
        "chosen" if point.trial == chosen else "",
    )


def _nearest(search: SearchReport) -> Iterator[str]:
    if not search.nearest:
        return
    yield from ("", "### What comes nearest", "")
    if not any(line.holds for line in search.story):
        yield from ("No candidate is shown to hold every limit on the samples to choose by.", "")
    rows = (
        (str(point.trial), point.tried, _measured(point.measured), "; ".join(map(_miss, point.misses)))
        for point in search.nearest
    )
    yield from table(("trial", "what it is", "measured", "what it misses"), rows)


def _miss(miss: Miss) -> str:
    if miss.measured is None:
        return f"{miss.limit}: not measured"
    by = "" if miss.by is None else f", off by {100 * miss.by:.3g} %"
    gate = miss.gate
    value = limit_value(miss.measured) if gate is None else gate_value(gate.metric, gate.rule, miss.measured)
    return f"{miss.limit}: {value}{by}"


def _best(standing: LimitStanding) -> str:
    if standing.best is None:
        return ""
    return f"{gate_value(standing.gate.metric, standing.gate.rule, standing.best)} (trial {standing.best_trial})"


def _limits(standings: Sequence[LimitStanding]) -> Iterator[str]:
    if not standings:
        return
    yield from ("", "### What limits going on", "")
    rows = (
        (
            standing.limit,
            str(standing.held_by),
            _best(standing),
            standing.limited_by,
        )
        for standing in standings
    )
    yield from table(("limit", "candidates that hold it", "best", "what limits it"), rows)


def _certificates(certificates: Certificates) -> Iterator[str]:
    if certificates.median_error is None:
        return
    yield from ("", "### Predicted beside measured", "")
    yield (
        "Times of whole networks, as shares of the original's, were predicted from measurements of their parts before they were"
        f" made; half of the predictions are off by no more than {100 * certificates.median_error:.1f} %."
    )
    yield ""
    compared = certificates.compared
    rows = (
        (str(one.trial), f"{one.predicted:.3f}", f"{one.measured:.3f}", f"{100 * one.error:.1f} %")
        for one in compared[-_MOST_PREDICTIONS:]
    )
    yield from table(("trial", "predicted", "measured", "off by"), rows)
    if len(compared) > _MOST_PREDICTIONS:
        yield from ("", f"The last {_MOST_PREDICTIONS} of {len(compared)}; all are in report.json.")


def _measured(measured: Measured) -> str:
    return ", ".join(filter(None, (_time(measured), size_text(measured.size_bytes), _quality(measured))))


def _time(measured: Measured) -> str:
    """Give the speed with its interval."""
    if not measured.latency_ratio:
        return ""
    return speed_between(measured.latency_ratio, measured.latency_low, measured.latency_high)


def _quality(measured: Measured) -> str:
    """Give the metric that speaks for the network, which comes first."""
    if not measured.quality:
        return ""
    first = measured.quality[0]
    return metric_change(first.metric, first.compressed, first.difference)


def _holds(holds: bool | None) -> str:
    return "" if holds is None else "yes" if holds else "not shown"
