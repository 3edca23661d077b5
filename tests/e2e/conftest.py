import pytest

from standalone.serve import Embedded

from ..servers import free_ports


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """Give the whole embedded service on a free port, as `make serve` starts it."""
    with Embedded(
        tmp_path_factory.mktemp("var"), host="127.0.0.1", port=free_ports(1)[0], workers=1, say=print
    ) as service:
        yield service
