"""Names of groups that hold while a network is cut, and the widths that a group may be cut to."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.errors import SpecInvalidError
from engine.graph.coupling import Coupling
from engine.graph.groups import Group
from engine.runtime.processor import cpu_profile
from engine.target import Target

# Kinds whose channels are single columns of a kernel; the others are blocks, of which any number is as good.
_ROUNDED = frozenset({"channels", "ffn", "hidden"})
_SHOWN = 12


def kernel_step(kind: str, target: Target) -> int:
    """Give the step of widths that the target's kernels fill."""
    if kind not in _ROUNDED:
        return 1
    return 16 if target.provider == "cpu" and "avx512f" in cpu_profile().flags else 8


def names_of(groups: Iterable[Group]) -> list[tuple[Group, list[str]]]:
    """Give each group with its names: its kind and a layer that makes its channels, as `channels:conv1`.

    Unlike a group's number, such a name still holds when channels have gone, or other parts of the network. A layer that makes
    several groups of a kind has them numbered.
    """
    found = []
    seen: dict[str, int] = {}
    for group in groups:
        names = []
        for layer in dict.fromkeys(group.producers):
            plain = f"{group.kind}:{layer}"
            seen[plain] = seen.get(plain, 0) + 1
            names.append(plain if seen[plain] == 1 else f"{plain}#{seen[plain]}")
        found.append((group, names))
    return found


def groups_by_name(groups: Iterable[Group]) -> dict[str, Group]:
    """Give every group by each of its names."""
    return {name: group for group, names in names_of(groups) for name in names}


def by_name(groups: Iterable[Group], names: Iterable[str], *, field: str) -> dict[str, Group]:
    """Find groups by name; any layer that makes a group's channels will do in it: `channels:conv1`, or `conv1` alone.

    Raises SpecInvalidError for a name that fits none, or several, or a group that was named before.
    """
    listed = names_of(groups)
    found: dict[str, Group] = {}
    taken: dict[str, str] = {}
    for name in names:
        fitting = [(group, each) for group, each in listed if name in each or name in {_layer(full) for full in each}]
        if not fitting:
            raise SpecInvalidError(
                f"`{field}` names `{name}`, which is no group of channels of the network.",
                hint=f"There is {_some([each[0] for _, each in listed])}." if listed else None,
            )
        if len(fitting) > 1:
            raise SpecInvalidError(
                f"`{field}` names `{name}`, which makes the channels of {len(fitting)} groups.",
                hint=f"Say which: {_some([each[0] for _, each in fitting])}.",
            )
        group, (first, *_) = fitting[0]
        if first in taken:
            raise SpecInvalidError(f"`{field}` names one group twice: `{taken[first]}` and `{name}`.")
        taken[first] = name
        found[name] = group
    return found


def _layer(name: str) -> str:
    return name.partition(":")[2]


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


@dataclass(frozen=True)
class Cuts:
    """The sets in which a group's channels can go: `sets` of `unit` channels each, of `size` in all, one of which stays."""

    size: int
    unit: int
    sets: int

    @classmethod
    def of(cls, coupling: Coupling, group: Group) -> "Cuts":
        """Read them; of sets of different sizes the commonest counts."""
        sizes = [len(unit.atoms) for unit in coupling.units(group)]
        unit = max(set(sizes), key=lambda size: (sizes.count(size), -size)) if sizes else len(group.atoms)
        sets = sizes.count(unit)
        whole = sets * unit == len(group.atoms)
        return cls(len(group.atoms), unit, max(0, sets - whole))

    @property
    def least(self) -> int:
        """The fewest channels that can stay."""
        return self.size - self.unit * self.sets

    def near(self, kept: float) -> int:
        """Give the number of channels that can stay and is nearest to this one; of two the larger."""
        gone = math.ceil((self.size - kept) / self.unit - 0.5)
        return self.size - self.unit * min(max(gone, 0), self.sets)

    def rounded(self, share: float, step: int) -> int:
        """Give about this share of the channels in steps that kernels like: smaller ones where few are left."""
        exact = self.size * share
        while step > max(exact, 1):
            step //= 2
        return self.near(min(self.size, max(step * math.floor(exact / step + 0.5), 1)))


def require_reached(asked: Mapping[str, int], reached: Mapping[str, int], cuts: Mapping[str, Cuts]) -> None:
    """Raise SpecInvalidError where a group cannot keep exactly as many channels as was asked for."""
    for name, kept in asked.items():
        if reached[name] != kept:
            one = cuts[name]
            below, above = one.near(kept - one.unit / 2), one.near(kept + one.unit / 2)
            others = f"{below} or {above}" if below != above else f"{above}"
            raise SpecInvalidError(
                f"`{name}` cannot keep {kept} of its {one.size} channels: they go in sets of {one.unit}.",
                hint=f"It can keep {others}." if kept not in {below, above} else None,
            )


def group_widths(coupling: Coupling) -> dict[str, int]:
    """Give by each name of a group how many channels it has."""
    return {name: len(group.atoms) for group, names in names_of(coupling.groups) for name in names}
