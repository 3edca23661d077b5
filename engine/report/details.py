"""The details of all passes in one union; `of` tells them apart."""

from typing import Annotated

from pydantic import Field

from engine.report.graph_details import FuseDetails, SimplifyDetails
from engine.report.pruning_details import (
    DropBlocksDetails,
    FactoriseDetails,
    PruneChannelsDetails,
    PruneWeightsDetails,
    ReconstructDetails,
)
from engine.report.quantization_details import (
    DynamicDetails,
    Float16Details,
    MixedDetails,
    StaticDetails,
    WeightsDetails,
)
from engine.report.training_details import DistillDetails, QuantizeAwareDetails

AnyDetails = Annotated[
    SimplifyDetails
    | FuseDetails
    | StaticDetails
    | DynamicDetails
    | WeightsDetails
    | Float16Details
    | MixedDetails
    | PruneChannelsDetails
    | PruneWeightsDetails
    | ReconstructDetails
    | FactoriseDetails
    | DropBlocksDetails
    | DistillDetails
    | QuantizeAwareDetails,
    Field(discriminator="of"),
]
