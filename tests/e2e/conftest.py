import httpx
import pytest

from standalone.serve import Embedded

from ..servers import free_ports


@pytest.fixture(scope="package")
def embedded(tmp_path_factory):
    """Give the whole embedded service on a free port, as `make serve` starts it."""
    with Embedded(
        tmp_path_factory.mktemp("var"), host="127.0.0.1", port=free_ports(1)[0], workers=1, say=print
    ) as service:
        yield service


@pytest.fixture(scope="module")
def client(embedded):
    """Give what asks that service over HTTP with its own key."""
    key = embedded.key_file.read_text().strip()
    with httpx.Client(base_url=embedded.url, headers={"Authorization": f"Bearer {key}"}, timeout=90) as made:
        yield made
