"""The search for session options, for people: what was tried, what it gave, and the best ones to paste."""

from collections.abc import Iterator

from engine.report.run_facts import SessionOptions
from engine.report.values import OptionTrial, Tuning
from engine.report.wording import milliseconds, speed, table


def tuning_lines(tuning: Tuning, heading: str) -> Iterator[str]:
    """Yield the lines of one search."""
    yield from ("", heading, "", tuning.reason, "")
    on_device = any(_own(trial.options) for trial in tuning.trials)
    more = ("inputs", "options") if on_device else ()
    head = ("threads", "mode", "graph optimisation", "spinning", *more, "p50", "beside the target's own", "")
    yield from table(head, (_row(trial, tuning.chosen, told_device=on_device) for trial in tuning.trials))
    for each in tuning.impossible:
        yield from ("", f"Not with {_options(each.options)}: {each.reason}.")
    if tuning.usage and tuning.chosen is not None:
        yield from ("", "To run it so:", "", "```python", tuning.usage.rstrip(), "```")


def _row(trial: OptionTrial, chosen: SessionOptions | None, *, told_device: bool) -> tuple[str, ...]:
    options = trial.options
    more = ("on the device" if options.inputs_on_device else "on the host", _options(options)) if told_device else ()
    return (
        str(options.threads),
        options.execution_mode,
        options.graph_optimization,
        "yes" if options.spinning else "no",
        *more,
        milliseconds(trial.p50_ms),
        speed(trial.ratio) + ("" if trial.stable else ", not stable"),
        "chosen" if options == chosen else "",
    )


def _own(options: SessionOptions) -> bool:
    return bool(options.inputs_on_device or options.provider_options or options.fixed_axes)


def _options(options: SessionOptions) -> str:
    named = [f"`{name}={value}`" for name, value in options.provider_options.items()]
    named += [f"fixed `{axis}={size}`" for axis, size in options.fixed_axes.items()]
    return " ".join(named) or ("inputs on the device" if options.inputs_on_device else "none")
