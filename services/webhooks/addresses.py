"""Where webhooks may lead: addresses that may be connected to, and URLs that may be registered.

A name's address is looked at when it is connected to, for it may be another one than when the URL was registered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self
from urllib.parse import SplitResult, urlsplit

from services.errors import FieldError, InvalidError
from settings import Settings

Resolve = Callable[[str, int], list[str]]
URL_LIMIT = 2000
_GLOBAL = IPv6Network("2000::/3")
# What carries an address of IPv4 to whoever translates it: 6to4 and its relays, Teredo, and NAT64's two.
_CARRIERS = tuple(map(ip_network, ("2002::/16", "192.88.99.0/24", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48")))


@dataclass(frozen=True)
class Policy:
    """The networks that an operator lets webhooks be in beside the public ones."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Read it from the settings."""
        return cls(tuple(ip_network(name.strip()) for name in settings.webhook_networks.split(",") if name.strip()))

    def allows(self, text: str, *, encrypted: bool) -> bool:
        """Tell whether an address may be connected to: a public one with TLS, any of a network that the operator named."""
        try:
            # A scope, as in fe80::1%eth0, is of no public address.
            address = ip_address(text)
        except ValueError:
            return False
        if any(address.version == network.version and address in network for network in self.networks):
            return True
        return encrypted and is_public(address)

    def check_url(self, url: str) -> None:
        """Raise InvalidError where no attempt could ever be made."""
        reason = self._refusal(url)
        if reason is not None:
            raise InvalidError("The webhook's URL is not taken.", (FieldError("/url", reason),), code="webhook_url")

    def _refusal(self, url: str) -> str | None:
        if not all("!" <= letter <= "~" for letter in url) or len(url) > URL_LIMIT:
            return f"Write the URL in at most {URL_LIMIT} letters of ASCII, others encoded."
        try:
            parts = urlsplit(url)
            port = port_of(parts)
        except ValueError:
            return "This is no URL."
        schemes = ("https", "http") if self.networks else ("https",)
        if parts.scheme not in schemes or not parts.hostname or port == 0:
            return f"Give a URL with {' or '.join(f'{scheme}://' for scheme in schemes)} and a host."
        if parts.username is not None or parts.password is not None or parts.fragment:
            return "The URL may have no user name, no password and no fragment."
        if _is_literal(parts.hostname) and not self.allows(parts.hostname, encrypted=parts.scheme == "https"):
            return "The URL's address is not public; an operator may allow its network (ONNXPRESS_WEBHOOK_NETWORKS)."
        return None


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address is one of the public internet, and no other one in disguise."""
    # Addresses of IPv4 that are mapped into IPv6 lie outside of the global ones.
    if isinstance(address, IPv6Address) and address not in _GLOBAL:
        return False
    if any(address.version == network.version and address in network for network in _CARRIERS):
        return False
    return address.is_global and not address.is_multicast


def port_of(parts: SplitResult) -> int:
    """Give the port that a URL names, or its scheme's."""
    return parts.port if parts.port is not None else 443 if parts.scheme == "https" else 80


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
