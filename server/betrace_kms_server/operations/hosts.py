"""By which names an HTTP request may call the port: the guard against DNS rebinding.

A page in a browser can make a name of its own resolve to this machine, and then read what the port answers; but the
`Host` of its requests is still that name (RFC 9110, section 7.4). IP addresses cannot be rebound. What proxies add
(`Forwarded`, `X-Forwarded-Host`) is not read.
"""

import ipaddress
import re
from collections.abc import Collection, Sequence

_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII)


def misdirected(hosts: Sequence[str], names: Collection[str]) -> str | None:
    """Return what to do about a request with these `Host` headers, or None if it may be answered.

    `names` are allowed beside IP addresses and localhost, in lower case and without a port. A request without the
    header comes from no browser.
    """
    if not hosts:
        return None
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if found is not None:
        name = (found["ipv6"] or found["name"]).lower()
        if name == "localhost" or name in names or _is_address(name):
            return None
    return "the Host header names another server: call this one by IP address, localhost or a name of kms.ops.hosts"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
