"""How large a network is beside the original."""

from pathlib import Path

from engine.report.values import Size
from engine.runtime.network_files import deflated_bytes, stored_bytes


def compare_size(original: Path, compressed: Path, *, download: bool = False) -> Size:
    """Give both networks' stored bytes, and with `download` what they deflate to."""
    return Size(
        original=stored_bytes(original),
        compressed=stored_bytes(compressed),
        original_download=deflated_bytes(original) if download else None,
        compressed_download=deflated_bytes(compressed) if download else None,
    )
