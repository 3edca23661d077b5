"""Who asks: the address at the other end, or the one that a trusted proxy names."""

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The addresses whose word is taken for whom they ask in the name of (X-Forwarded-For)."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(one) for one in networks]

    def __contains__(self, address: str) -> bool:
        """Tell whether this is a trusted proxy."""
        found = _parsed(address)
        return found is not None and any(found in network for network in self._networks)

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """Give the client's address: of a chain of proxies the last one that is none of ours, for what stands before is hearsay."""
        if peer not in self:
            return peer
        chain = [part.strip() for header in forwarded for part in header.split(",")]
        seen = peer
        for named in reversed(chain):
            found = _parsed(named)
            if found is None:
                return seen
            seen = str(found)
            if seen not in self:
                return seen
        return seen


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found
