"""Types of settings: how the text of a value is read, and what is refused."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from betrace_kms_server.host.groups import group_id
from betrace_kms_server.host.sockets import Address, parse_addresses, parse_host_ports

REGION = r"^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$"
"""us-east-1, us-gov-west-1, us-isob-east-1, eusc-de-east-1: partitions name their Regions as they like."""
_ENDPOINT = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?:/[^@\s]*)?", re.ASCII
)
_MAX_PORT = 65_535
_PASSWORD = re.compile(r"password\s*=|://[^/@\s]*:[^/@\s]*@", re.IGNORECASE)
"""In either form of a connection string of libpq; sslpassword too."""
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})", re.ASCII)


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _whole_number(value: Any) -> Any:
    """Accept decimal digits only: int() also takes 1_000, digits of other scripts and, for pydantic, 5.0."""
    if not isinstance(value, str):
        return value
    if _WHOLE_NUMBER.fullmatch(value) is None:
        raise ValueError("Input should be a whole number in decimal digits, such as 60")
    return int(value)


def _switch(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() not in ("true", "false"):
        raise ValueError("Input should be true or false")
    return value.lower() == "true"


def check_endpoint(value: Any) -> Any:
    """Return an endpoint, or raise ValueError, which does not show it: it may hold a password."""
    found = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 1 <= int(found["port"] or 1) <= _MAX_PORT:
        raise ValueError("is no endpoint: write http://HOST:PORT or https://HOST, without a user")
    return value


def _dsn(value: Any) -> Any:
    """Refuse a password without showing it: settings are logged."""
    if isinstance(value, str) and _PASSWORD.search(value):
        raise ValueError("holds a password, and settings are shown: use kms.store.password-file")
    return value


def _endpoints(value: Any) -> Any:
    return [check_endpoint(part) for part in _split(value)] if isinstance(value, str) else value


def _group(value: Any) -> Any:
    if isinstance(value, str):
        group_id(value)
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(parse_addresses)]
OpsAddresses = Annotated[tuple[Address, ...], BeforeValidator(parse_host_ports)]
WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
Group = Annotated[str, BeforeValidator(_group)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Dsn = Annotated[str, BeforeValidator(_dsn)]
Endpoint = Annotated[str, BeforeValidator(check_endpoint)]
Endpoints = Annotated[tuple[str, ...], BeforeValidator(_endpoints)]
