"""What a search may see: more samples without labels to train on, and more labelled ones to choose by than a recipe needs."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.cases import Case, Data
from benchmarks.distillation import samples


def wider(case: Case, count: int, *, select: int = 0, choosing: int = 0) -> Case:
    """Give the case with `count` samples to train on, and `choosing` to choose by where it has labels.

    The more candidates there are, the more the best of them owes to chance; labels that choose do not judge. A case without labels
    keeps the last `select` samples that it would train on to choose by.
    """
    return replace(case, load=partial(_load, case, count, select, choosing))


def _load(case: Case, count: int, select: int, choosing: int, folder: Path) -> Data:
    data = samples.more(case, count, select=select)(folder)
    moved = choosing - data.selecting
    if data.chosen_by is None or data.truth is None or moved <= 0:
        return data
    if moved > len(data) // 2:
        raise ValueError(f"{case.name} has {len(data)} samples that judge; {moved} of them cannot choose")
    return replace(
        data,
        test={name: array[moved:] for name, array in data.test.items()},
        truth=data.truth[moved:],
        select={name: np.concatenate([array, data.test[name][:moved]]) for name, array in data.select.items()},
        chosen_by=np.concatenate([data.chosen_by, data.truth[:moved]]),
    )
