"""Good choices where the program is too large to be solved: from uniform starts, the best single change as long as one helps."""

from collections.abc import Mapping, Sequence

from engine.search.choices import Choice, Quantity, Tables

# So many best starts are improved.
_STARTS = 3
_MOST_CHANGES = 400
# Damage counts so much of the objective, so that of equal choices the harmless one is taken.
_TIE = 1e-4


def descend(
    tables: Tables,
    minimise: Quantity,
    limits: Mapping[Quantity, float],
    *,
    different_from: Sequence[Choice] = (),
    distance: int = 1,
) -> Choice | None:
    """Give a choice inside the limits that no single change makes better, None where none was found.

    Starts are the uniform choices and the whole network. Outside the limits a change is better that breaks them less, as
    shares of the limits; inside, one that has less of the quantity. All is deterministic: of equal changes the first is made.
    """
    work = _Descent(tables, minimise, limits, different_from, distance)
    starts = sorted(tables.uniforms(), key=work.rank)[:_STARTS]
    found = [choice for choice in map(work.improved, starts) if work.rank(choice)[0] <= 0]
    return min(found, key=work.rank, default=None)


class _Descent:
    def __init__(
        self,
        tables: Tables,
        minimise: Quantity,
        limits: Mapping[Quantity, float],
        different_from: Sequence[Choice],
        distance: int,
    ) -> None:
        self._tables, self._minimise, self._limits = tables, minimise, limits
        self._others, self._distance = different_from, distance
        whole = tables.total(tables.whole)
        self._scale = max(abs(whole[minimise]), 1e-30) if minimise != "damage" else 1.0
        self._harm = sum(max(group.damages, default=0.0) for group in tables.groups) or 1.0

    def rank(self, choice: Choice) -> tuple[float, float]:
        """Give by how much a choice breaks limits, and what it has of the objective."""
        total = self._tables.total(choice)
        broken = sum(
            max(0.0, total[quantity] - limit) / max(abs(limit), 1e-30) for quantity, limit in self._limits.items()
        )
        near = sum(max(0, self._distance - distance(self._tables, choice, other)) for other in self._others)
        tie = 0.0 if self._minimise == "damage" else _TIE * total["damage"] / self._harm
        return (broken if broken > 1e-9 else 0.0) + near, total[self._minimise] / self._scale + tie

    def improved(self, choice: Choice) -> Choice:
        """Change one variant after the other."""
        rank = self.rank(choice)
        for _ in range(_MOST_CHANGES):
            best = min(self._tables.moves(choice), key=self.rank, default=choice)
            better = self.rank(best)
            if not better < rank:
                break
            choice, rank = best, better
        return choice


def distance(tables: Tables, one: Choice, other: Choice) -> int:
    """Count where two choices differ: blocks that one has dropped, and groups and layers that both have, in other variants."""

    def alive(block: str | None) -> bool:
        return not tables.is_gone(block, one.dropped) and not tables.is_gone(block, other.dropped)

    blocks = sum(
        tables.is_gone(block.name, one.dropped) != tables.is_gone(block.name, other.dropped) for block in tables.blocks
    )
    groups = sum(
        alive(group.block) and left != right
        for group, left, right in zip(tables.groups, one.widths, other.widths, strict=True)
    )
    layers = sum(
        alive(layer.block) and left != right
        for layer, left, right in zip(tables.layers, one.variants, other.variants, strict=True)
    )
    return blocks + groups + layers
