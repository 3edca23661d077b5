"""What the passes say that make a network thinner: of groups of channels, of layers and of residual branches."""

from typing import Literal

from pydantic import Field

from engine.report.detail_parts import Detail, LeftAlone


class ChannelGroup(Detail):
    """Channels that are alternatives to each other."""

    name: str
    kind: str
    producers: tuple[str, ...] = Field(description="Nodes that make them, the first ones.")
    channels: int
    kept: int
    lossy: bool = Field(description="Whether a normalisation over the channels changes with their number.")


class FrozenChannels(Detail):
    """A node that keeps channels."""

    node: str
    op: str
    reason: str
    channels: int


class OracleAgreement(Detail):
    """How far the cut network is from the original in which the same channels are silenced."""

    difference: float = Field(description="The largest, as a share of an output's largest value.")
    tolerance: float


class RefittedLayer(Detail):
    """What became of one layer that was to give again what it gave in the original."""

    node: str
    op: str
    taken: bool
    error_before: float | None = Field(
        None, description="Mean square on held-out samples, as a share of the target's variance; null: not fitted."
    )
    error_after: float | None = None
    reason: str | None = Field(None, description="Why it was not fitted.")


class TriedSparsity(Detail):
    """A share that was tried on the way to what was asked for."""

    sparsity: float
    drop: float | None = Field(None, description="Of quality, on samples to choose by; null: not measured.")
    size: float | None = Field(None, description="Bytes of weights, as a share of the original's.")
    latency: float | None = Field(None, description="Time of a run, as a multiple of the original's.")


class TriedImportance(Detail):
    """A way of telling which channels go that was tried, or why it was not."""

    importance: str
    drop: float | None = Field(description="Of quality, on samples to choose on; null: not tried, or alone.")
    macs_after: int | None
    chosen: bool
    why_not: str | None = Field(None, description="Why it was not tried.")


class PruneChannelsDetails(Detail):
    """What `prune_channels` did."""

    of: Literal["prune_channels"] = "prune_channels"
    importance: str = Field("reconstruction", description="What decided which channels went.")
    importances: tuple[TriedImportance, ...] = Field((), description="What `auto` chose from.")
    groups: tuple[ChannelGroup, ...]
    prunable_parameters: float = Field(description="Share of all that belongs to channels that could go.")
    prunable_macs: float
    frozen: tuple[FrozenChannels, ...] = Field(description="Most channels first.")
    oracle: OracleAgreement
    rounds: int
    layers: tuple[RefittedLayer, ...]
    macs_before: int = Field(description="Multiply-accumulates at batch 1.")
    macs_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    tried: tuple[TriedSparsity, ...]


class ReconstructDetails(Detail):
    """What `reconstruct` did."""

    of: Literal["reconstruct"] = "reconstruct"
    layers: tuple[RefittedLayer, ...]
    drop_before: float | None = Field(description="Quality lost by the network as it was given.")
    drop_after: float | None


class SparseLayer(Detail):
    """A layer with weights that became zero."""

    node: str
    op: str
    weights: int
    zeros: float = Field(description="Share of its weights.")
    method: str = Field(description="The one that was kept: of the least error on rows held out for that.")
    held_out_error: dict[str, float] | None = Field(
        None, description="By method: mean square error of the outputs, as a share of their energy; null without data."
    )
    rows: int | None = Field(None, description="Of the layer's input that the weights were fitted to.")


class RemovedChannels(Detail):
    """Channels that were zero as a whole."""

    channels: int
    parameters: int = 0
    reason: str | None = Field(None, description="Why none went.")


class PruneWeightsDetails(Detail):
    """What `prune_weights` did."""

    of: Literal["prune_weights"] = "prune_weights"
    method: str
    pattern: str | None
    zeros: float = Field(description="Share of the weights of all layers.")
    layers: tuple[SparseLayer, ...]
    left_alone: tuple[LeftAlone, ...]
    removed_channels: RemovedChannels
    latency: str = Field(description="What to expect of it on this target.")


class FactorisedLayer(Detail):
    """A layer that became two or three thinner ones."""

    node: str
    op: str
    ranks: tuple[int, ...]
    multiplications: float = Field(description="Share of the layer's that is left.")
    time_of_network: float | None = Field(
        description="Time of a run with all layers of this kind split, as a multiple; null: not raced."
    )
    method: str = Field(description="The one that was kept: of the least error on rows held out for that.")
    held_out_error: dict[str, float] = Field(
        description="By method: mean square error of the outputs, as a share of their energy."
    )
    rows: int = Field(description="Of the layer's input that the thin layers were fitted to.")


class FactoriseDetails(Detail):
    """What `factorise` did."""

    of: Literal["factorise"] = "factorise"
    layers: tuple[FactorisedLayer, ...]
    left_alone: tuple[LeftAlone, ...]
    weights_before: int
    weights_after: int


class ResidualBranch(Detail):
    """A residual branch, and what the network loses without it alone."""

    node: str
    parameters: int
    damage: float | None = Field(
        None,
        description="In the pass's metric; null: the network does not run without it, or the recipe named what goes.",
    )
    dropped: bool
    reason: str | None = Field(None, description="Why the network does not run without it.")


class DropBlocksDetails(Detail):
    """What `drop_blocks` did."""

    of: Literal["drop_blocks"] = "drop_blocks"
    metric: Literal["kl", "noise_share"] | None = Field(
        None,
        description="KL divergence in nats where outputs score classes, else the noise's share of the outputs' energy; null:"
        " nothing was scored, for the recipe named what goes.",
    )
    after: float | None = Field(None, description="Damage of all that was dropped together.")
    samples: int = 0
    blocks: tuple[ResidualBranch, ...]
    order: tuple[str, ...] = Field(description="In which the branches went.")
    not_considered: tuple[LeftAlone, ...]
