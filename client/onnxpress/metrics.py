"""What is known of metrics without asking the service: which are shares, and which speaks for an output of each kind."""

from collections.abc import Mapping

# Metrics that are shares of samples, shown in per cent and compared in points.
SHARES = frozenset(
    {"top1", "top5", "f1", "iou", "top1_agreement", "neighbours", "r2", "mask_iou", "box_f1", "token_agreement"}
)
LOWER_IS_BETTER = frozenset({"mse", "mae", "edit_distance", "perplexity", "nats_per_token", "kl"})
# Beside the original, where there are no labels: 1 where nothing changed.
FIDELITY_OF_KIND: Mapping[str, str] = {
    "classes": "top1_agreement",
    "embedding": "cosine",
    "values": "r2",
    "mask": "mask_iou",
    "boxes": "box_f1",
    "tokens": "token_agreement",
}
