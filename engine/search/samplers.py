"""Optuna's samplers over whole numbers: asked anew each time from the trials that were told, so that nothing is stored.

A study lives for one call, in memory. Told trials are put into it, failed ones as failed (Optuna's heartbeat does not work
with ask and tell); then what the sampler asks for is answered by a prediction, which costs nothing, and everything that it
asked for is given back: what of it is worth a real trial is for the caller to say. Limits are constraints of the trials.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np

from engine.search.front import pareto
from engine.search.knobs import Knob, Values

SamplerName = Literal["tpe", "nsga2", "random"]

_POPULATION = 16
# Random draws before a model of the trials is made.
_STARTUP = 10


@dataclass(frozen=True)
class Rated:
    """Knobs' values with what came of them: objectives that there should be least of, and by how much limits are broken."""

    values: Values
    # None: the trial failed.
    objectives: tuple[float, ...] | None
    # Above 0: broken.
    violations: tuple[float, ...] = ()


Rate = Callable[[Values], Rated]


def ask(
    knobs: Sequence[Knob], told: Sequence[Rated], sampler: SamplerName, *, seed: int, count: int, rate: Rate | None
) -> list[Values]:
    """Give the values that a sampler asks for next.

    Args:
        knobs: What there is to turn.
        told: Trials that have ended, in the order of their numbers.
        sampler: Which one.
        seed: With the same trials in the same order, the same seed gives the same answer.
        count: How often it is asked.
        rate: Answers each question before the next; None: all are asked at once.

    """
    study = _study(sampler, _mixed(seed, len(told)))
    names = [knob.name for knob in knobs]
    distributions = {knob.name: _distribution(knob) for knob in knobs}
    if sampler == "nsga2":
        # Only what the sampler itself has asked for belongs to a generation. The first is the best of all trials, so that parents
        # are never older than they have to be.
        for each in _fittest(told, _POPULATION):
            study.enqueue_trial(dict(zip(names, each.values, strict=True)))
            trial = study.ask(distributions)
            # A trial whose values are given would get none.
            study.sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[trial.number])
            _tell(study, trial, each)
    else:
        for each in told:
            study.add_trial(_as_trial(each, names, distributions))
    found: list[Values] = []
    for _ in range(count):
        trial = study.ask(distributions)
        values = tuple(int(trial.params[name]) for name in names)
        found.append(values)
        if rate is not None:
            _tell(study, trial, rate(values))
    return found


def _fittest(told: Sequence[Rated], count: int) -> list[Rated]:
    """Give so many trials, front by front, those inside of limits first; of the last front evenly chosen ones."""
    left = dict(enumerate(told))
    found: list[Rated] = []
    while len(found) < count:
        places = {
            number: (sum(max(0.0, each) for each in rated.violations), *rated.objectives)
            for number, rated in left.items()
            if rated.objectives is not None
        }
        best = min((place[0] for place in places.values()), default=0.0)
        front = pareto({number: place[1:] for number, place in places.items() if place[0] <= best})
        if not front:
            break
        room = count - len(found)
        chosen = front if len(front) <= room else [front[int(at)] for at in np.linspace(0, len(front) - 1, room)]
        found += [left.pop(number) for number in chosen]
    return found


def _mixed(seed: int, told: int) -> int:
    """Give another seed for each number of trials, or a sampler that keeps no memory would repeat itself."""
    return int(np.random.SeedSequence((seed, told)).generate_state(1)[0])


def _optuna() -> Any:
    """Load Optuna late: it is slow, and only searches with a study need it."""
    return import_module("optuna")


def _study(sampler: SamplerName, seed: int) -> Any:
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers = optuna.samplers
    made: Any
    if sampler == "tpe":
        made = samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=_STARTUP)
    elif sampler == "nsga2":
        made = samplers.NSGAIISampler(seed=seed, population_size=_POPULATION)
    else:
        made = samplers.RandomSampler(seed=seed)
    return optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), directions=["minimize", "minimize"], sampler=made
    )


def _distribution(knob: Knob) -> Any:
    distributions = _optuna().distributions
    if knob.ordered:
        return distributions.IntDistribution(0, knob.levels - 1)
    return distributions.CategoricalDistribution(range(knob.levels))


def _tell(study: Any, trial: Any, rated: Rated) -> None:
    if rated.objectives is None:
        study.tell(trial, state=_optuna().trial.TrialState.FAIL)
        return
    for place, violation in enumerate(rated.violations):
        trial.set_constraint(f"limit {place}", violation)
    study.tell(trial, rated.objectives)


def _as_trial(rated: Rated, names: Sequence[str], distributions: dict[str, Any]) -> Any:
    trial = _optuna().trial
    params = dict(zip(names, rated.values, strict=True))
    if rated.objectives is None:
        return trial.create_trial(state=trial.TrialState.FAIL, params=params, distributions=distributions)
    return trial.create_trial(
        values=list(rated.objectives),
        params=params,
        distributions=distributions,
        constraints={f"limit {place}": violation for place, violation in enumerate(rated.violations)},
    )
