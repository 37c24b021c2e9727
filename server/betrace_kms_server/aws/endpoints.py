"""Whether clients send to AWS: a setting of ours, an AWS_* variable or a profile of the SDK may send them elsewhere."""

from collections.abc import Mapping
from functools import cache
from urllib.parse import urlsplit

from botocore.loaders import Loader

from betrace_kms_server.core.findings import Finding


def inspect_endpoints(name: str, urls: Mapping[str, str]) -> Finding:
    """Return whether each URL is one of AWS. `urls` are those of the clients, by the service that they are for."""
    foreign = [f"{service} go to {_origin(url)}" for service, url in urls.items() if not is_aws(url)]
    if not foreign:
        return Finding(name)
    return Finding(
        name,
        f"calls to {', and calls to '.join(foreign)}, which is not AWS: remove aws.kms.endpoint, kms.store.endpoint,"
        " AWS_ENDPOINT_URL and its like, and endpoint_url in the SDK's profile",
    )


def is_aws(url: str) -> bool:
    """Return whether a URL is https and its host is in a domain of AWS, of any partition."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    return parts.scheme == "https" and any(host.endswith(f".{domain}") for domain in _domains())


def _origin(url: str) -> str:
    """Return scheme and host: a URL may hold a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


@cache
def _domains() -> frozenset[str]:
    """Return the domains of all partitions, as the SDK knows them."""
    partitions = Loader().load_data("partitions")["partitions"]
    return frozenset(each["outputs"][name] for each in partitions for name in ("dnsSuffix", "dualStackDnsSuffix"))
