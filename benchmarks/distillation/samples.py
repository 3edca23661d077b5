"""What is trained on: a network's calibration samples and those of `unlabelled.npz`, all without labels."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.cases import Case, Data, NetworkMissingError
from benchmarks.networks.data import UNLABELLED_FILE


def more(case: Case, count: int, *, select: int = 0) -> Callable[[Path], Data]:
    """Give what loads the case's data with `count` samples to train on.

    Of a network without labels the last `select` of them are to choose by, and are not trained on.
    """
    return partial(_load, case, count, select)


def _load(case: Case, count: int, select: int, folder: Path) -> Data:
    data = case.load(folder)
    own = len(next(iter(data.calibration.values())))
    arrays = dict(data.calibration)
    if count > own:
        path = folder / UNLABELLED_FILE
        if not path.exists():
            raise NetworkMissingError(
                f"{case.name} has no {UNLABELLED_FILE} to train on yet: python benchmarks/networks/unlabelled.py {case.name}"
            )
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: np.concatenate([array, stored[name].astype(array.dtype)]) for name, array in arrays.items()}
    found = min(len(array) for array in arrays.values())
    if found < count:
        raise NetworkMissingError(
            f"{case.name} has {found} samples to train on, {count} are wanted:"
            f" python benchmarks/networks/unlabelled.py {case.name} --count {count - own}"
        )
    trained = {name: array[: count - select] for name, array in arrays.items()}
    chosen_by = data.select or {name: array[count - select : count] for name, array in arrays.items() if select}
    return Data(
        trained,
        data.test,
        data.truth,
        chosen_by,
        data.chosen_by,
        constants=data.constants,
        sample_axis=data.sample_axis,
    )
