"""Recipes by name: chains of passes that belong together, with what they are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from engine.contract import Pass
from engine.passes.distill import Distill
from engine.passes.drop_blocks import DropBlocks
from engine.passes.fuse import Fuse
from engine.passes.mixed_precision import MixedPrecision
from engine.passes.prune_channels import PruneChannels
from engine.passes.quantize_aware_train import QuantizeAwareTrain
from engine.passes.quantize_weights import QuantizeWeights
from engine.passes.reconstruct import Reconstruct
from engine.passes.simplify import Simplify

RecipeName = Literal["small", "fast", "fastest"]


@dataclass(frozen=True)
class NamedRecipe:
    """A chain of passes. All of them take data; what trains takes PyTorch, and is left out where no worker has it."""

    name: RecipeName
    summary: str
    documentation: str
    passes: tuple[Pass, ...]


_WRITTEN = (
    NamedRecipe(
        "small",
        "The smallest file: half of the channels, and weights in 4 bits that were trained so.",
        "Prunes half of each group of channels, heads and hidden neurons and refits the layers, distils what is left, stores"
        " weights in 4 bits block by block, and trains them in that form. Activations stay in float, so a run is faster by what was pruned,"
        " not by integers; convolutions unpack their weights when the network is loaded.",
        (
            Simplify(),
            Fuse(),
            PruneChannels(sparsity=0.5),
            Distill(),
            QuantizeWeights(format="qdq"),
            QuantizeAwareTrain(),
        ),
    ),
    NamedRecipe(
        "fast",
        "Faster at next to no loss: a quarter of the channels, and integers where they pay.",
        "Prunes a quarter of each group of channels, heads and hidden neurons and refits the layers, distils what is left, and"
        " takes for each layer of float and the kinds of integers what the target measurably runs fastest; integers are"
        " trained as they ship.",
        (Simplify(), Fuse(), PruneChannels(sparsity=0.25), Distill(), MixedPrecision(), QuantizeAwareTrain()),
    ),
    NamedRecipe(
        "fastest",
        "As fast as it gets: a third of the residual branches and half of the channels go, and integers where they pay.",
        "Drops up to a third of the residual branches, prunes half of each group of channels, heads and hidden neurons, refits the"
        " layers, distils for twice as long, and takes for each layer of float and the kinds of integers what the target measurably"
        " runs fastest; integers are trained as they ship. Give it a gate on quality: it is for networks that have some to"
        " lose.",
        (
            Simplify(),
            Fuse(),
            DropBlocks(share=0.34, max_kl=None, min_sqnr_db=None),
            PruneChannels(sparsity=0.5),
            Reconstruct(),
            Distill(seconds=240.0),
            MixedPrecision(),
            QuantizeAwareTrain(),
        ),
    ),
)
RECIPES: Mapping[str, NamedRecipe] = {recipe.name: recipe for recipe in _WRITTEN}
assert set(RECIPES) == set(get_args(RecipeName))


def list_recipes() -> list[dict[str, Any]]:
    """Describe every named recipe: name, summary, documentation, the types of its passes, and these with all defaults."""
    return [
        {
            "name": recipe.name,
            "summary": recipe.summary,
            "documentation": recipe.documentation,
            "needs_data": any(step.needs_data for step in recipe.passes),
            "trains": any(step.trains for step in recipe.passes),
            "passes": [step.model_dump(mode="json") for step in recipe.passes],
        }
        for recipe in RECIPES.values()
    ]


def named_passes(body: Any) -> Any:
    """Write out a recipe that is given by its name alone; anything else is given back as it came.

    Raises ValueError for a name that there is not.
    """
    name = body if isinstance(body, str) else body.get("name") if isinstance(body, Mapping) else None
    if name is None or (isinstance(body, Mapping) and "passes" in body):
        return body
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ValueError(f"there is no recipe called {str(name)[:64]!r}; there is {', '.join(RECIPES)}")
    rest = dict(body) if isinstance(body, Mapping) else {"name": name}
    return {**rest, "passes": [step.model_dump(mode="json") for step in recipe.passes]}
