"""Where bytes are kept: blobs by digest and tenant, in a local folder or in a bucket."""

from services.storage.contract import Found, FoundUpload, Store, Stored, Writer
from services.storage.folder import Folder
from settings import Settings

__all__ = ["Folder", "Found", "FoundUpload", "Store", "Stored", "Writer", "open_store"]


def open_store(settings: Settings, *, patience_s: float = 3.0) -> Store:
    """Give the store that the settings name.

    A bucket that does not answer is asked again for `patience_s`: less than a client waits, less than a lease lasts.
    """
    if not settings.store_url:
        return Folder(settings.data_dir / "store")
    # Its library is an extra.
    from services.storage.bucket import Bucket  # noqa: PLC0415

    return Bucket.from_settings(settings, patience_s=patience_s)
