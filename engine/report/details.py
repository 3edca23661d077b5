"""The details of all passes in one union; `of` tells them apart."""

from typing import Annotated

from pydantic import Field

from engine.report.pruning_details import (
    DropBlocksDetails,
    FactoriseDetails,
    PruneChannelsDetails,
    PruneWeightsDetails,
    ReconstructDetails,
)

AnyDetails = Annotated[
    PruneChannelsDetails | PruneWeightsDetails | ReconstructDetails | FactoriseDetails | DropBlocksDetails,
    Field(discriminator="of"),
]
