"""Which release of ONNX Runtime is the first that loads a network: by its operator sets and the version of its file."""

from collections.abc import Mapping

# (release, newest standard operator set, newest of ai.onnx.ml, newest IR version), seen by loading networks with each release.
_RELEASES: tuple[tuple[str, int, int, int], ...] = (
    ("1.17", 20, 4, 9),
    ("1.19", 21, 5, 10),
    ("1.21", 22, 5, 10),
    ("1.23", 23, 5, 11),
    ("1.24", 25, 5, 13),
    ("1.25", 26, 5, 13),
)


def first_release(opset: Mapping[str, int], ir_version: int) -> str | None:
    """Give the first release that takes these versions, none older than 1.17; None where no release of the table does."""
    standard, learning = opset.get("", 1), opset.get("ai.onnx.ml", 1)
    return next(
        (
            release
            for release, newest, newest_learning, newest_ir in _RELEASES
            if standard <= newest and learning <= newest_learning and ir_version <= newest_ir
        ),
        None,
    )
