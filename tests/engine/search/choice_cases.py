"""Small tables of choices, made at random: chains of layers with blocks in blocks, in which every choice can be counted out."""

from itertools import product

import numpy as np

from engine.search.choices import BlockChoice, Choice, GroupChoice, LayerChoice, LayerVariant, Moment, Tables


def _costs(random, rows, columns, scale):
    """Costs that fall with the widths, not quite as their product does: kernels like some widths better."""
    wide = np.linspace(1, 0.3, rows)[:, None] * np.linspace(1, 0.3, columns)[None]
    taste = random.uniform(0.8, 1.2, (rows, columns))
    return np.stack([wide * taste * scale, wide * 1000 * scale, wide * 5000 * scale])


def tables(seed, *, groups=3, blocks=1, layers=4, widths=3, variants=2, precision="static"):
    """Give tables in which the first `blocks` groups are each in a block; a second block is inside the first."""
    random = np.random.default_rng(seed)
    names = [f"g{place}" for place in range(groups)]
    inside = {f"g{place}": f"b{place}" for place in range(blocks)}
    found = []
    for place in range(layers):
        reads, makes = names[place % groups], names[(place + 1) % groups]
        block = inside.get(reads) or inside.get(makes)
        axes = ((reads, makes), (None, makes), (reads, None), (None, None))[int(random.integers(0, 4)) if place else 0]
        shape = [1 if group is None else widths for group in axes]
        if any(group is not None and inside.get(group) not in {None, block} for group in axes):
            axes, shape = (None, None), [1, 1]
        made = tuple(
            LayerVariant(
                _costs(random, *shape, random.uniform(0.05, 0.3) * (1 + number)),
                damage=0.0 if number else float(random.uniform(0, 0.02)),
                in_float=number == 1,
                rank=8 * number if number > 1 else None,
            )
            for number in range(variants)
        )
        found.append(LayerChoice(f"l{place}", made, axes, block))
    return Tables(
        precision=precision,
        groups=tuple(
            GroupChoice(
                name,
                tuple(round(32 * share) for share in np.linspace(1, 0.25, widths)),
                (0.0, *np.sort(random.uniform(0.01, 0.3, widths - 1)).tolist()),
                inside.get(name),
            )
            for name in names
        ),
        blocks=tuple(
            BlockChoice(f"b{place}", float(random.uniform(0.02, 0.4)), "b0" if place == 1 else None)
            for place in range(blocks)
        ),
        layers=tuple(found),
        rest=(0.05, 300.0, 700.0),
        rest_damage=0.003,
        moments=(Moment({names[0]: 40.0, names[-1]: 11.0}, 100.0), Moment({names[-1]: 64.0})),
    )


def every_choice(made):
    """Yield every choice once: of what is dropped the first variant stands for all."""
    seen = set()
    for widths in product(*[range(len(group.widths)) for group in made.groups]):
        for dropped in product(*[(False, True)] * len(made.blocks)):
            for variants in product(*[range(len(layer.variants)) for layer in made.layers]):
                choice = Choice(widths, dropped, variants)
                point = made.point(choice).model_dump_json()
                if point not in seen:
                    seen.add(point)
                    yield choice
