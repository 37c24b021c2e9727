"""Builds the gRPC server with the channel arguments that a sidecar needs."""

from collections.abc import Sequence

import grpc
from betrace.kms.v1 import admin_pb2, admin_pb2_grpc, key_management_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc

from betrace_kms_server.access.admission import Access
from betrace_kms_server.access.identity import Caller, SameCaller
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.socket_permissions import apply_permissions, owner_only
from betrace_kms_server.host.sockets import Address
from betrace_kms_server.rpc.admin import AdminService
from betrace_kms_server.rpc.gate import CallGate
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, HealthService
from betrace_kms_server.rpc.interceptors import ErrorInterceptor
from betrace_kms_server.rpc.key_management import KeyManagementService
from betrace_kms_server.rpc.reflection import Reflection
from betrace_kms_server.telemetry.observers import CallObserver

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["KmsAdminService"].full_name
AT_MOST_AN_HOUR = (
    ("grpc.max_connection_age_ms", 3_000_000),  # gRPC makes it up to 10 % more
    ("grpc.max_connection_age_grace_ms", 300_000),
)
_OPERATOR = Caller("admin", "socket")
_OVERHEAD_BYTES = 64 * 1024
_UNCOMPRESSED = 1
_OVERHEAD_SHARE = 1024


def transport_limit(max_payload_bytes: int) -> int:
    """Return the receive limit in bytes under which what Encrypt sealed at its limit can be sent back to Decrypt.

    A sealed message adds 32 bytes to each frame of 64 KiB, and less than 32 KiB of header and request fields.
    """
    return max_payload_bytes + max_payload_bytes // _OVERHEAD_SHARE + _OVERHEAD_BYTES


def channel_options(max_payload_bytes: int) -> Sequence[tuple[str, int]]:
    """Return the channel arguments of a server whose payloads have at most so many bytes."""
    return [
        ("grpc.so_reuseport", 0),  # a second daemon must not take calls from the first
        ("grpc.max_receive_message_length", transport_limit(max_payload_bytes)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 100),  # for each connection; a client lets more calls wait
        # It refuses streams of clients that keep to the limit, because it counts some that have just ended.
        ("grpc.http.overload_protection", 0),
        # gRPC inflates a request before it checks the size: 1 MB of gzip can hold 1,000
        ("grpc.compression_enabled_algorithms_bitset", _UNCOMPRESSED),
        # A stream gets 64 KiB until its message is asked for; gRPC would raise that to megabytes when it is busy.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.server_handshake_timeout_ms", 5_000),  # connections that never speak go away
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),  # clients that ping often do not get ENHANCE_YOUR_CALM
    ]


def build_server(
    key_management: KeyManagementService,
    health_service: HealthService,
    observer: CallObserver,
    gate: CallGate,
    access: Access,
    *,
    max_payload_bytes: int,
    reflect: bool,
    tls: bool = False,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """Return the server that callers reach, not listening yet. Calls of our own service are admitted by `access`.

    With `tls` no connection gets older than an hour: then its certificate is checked again. `interceptors` come behind
    the one for errors.
    """
    options = AT_MOST_AN_HOUR if tls else ()
    server = _server(observer, gate, access, max_payload_bytes, interceptors=interceptors, options=options)
    key_management_pb2_grpc.add_KeyManagementServiceServicer_to_server(key_management, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    if reflect:
        _reflect(server, (KEY_MANAGEMENT, health.SERVICE_NAME), health_service)
    return server


def build_admin_server(
    admin: AdminService, health_service: HealthService, observer: CallObserver, gate: CallGate
) -> grpc.aio.Server:
    """Return the server of the admin socket, not listening yet. Always with reflection: only its owner reaches it."""
    server = _server(observer, gate, Access(SameCaller(_OPERATOR)), 0)
    admin_pb2_grpc.add_KmsAdminServiceServicer_to_server(admin, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    _reflect(server, (ADMIN, health.SERVICE_NAME), health_service)
    return server


def _reflect(server: grpc.aio.Server, services: Sequence[str], health_service: HealthService) -> None:
    reflection = Reflection(services)
    reflection.add_to(server)
    health_service.when_drained(reflection.drain)


def _server(
    observer: CallObserver,
    gate: CallGate,
    access: Access,
    max_payload_bytes: int,
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    options: Sequence[tuple[str, int]] = (),
) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[ErrorInterceptor(observer, gate, access), *interceptors],
        options=[*channel_options(max_payload_bytes), *options],
    )


def bind(
    server: grpc.aio.Server, addresses: Sequence[Address], credentials: grpc.ServerCredentials | None = None
) -> list[str]:
    """Listen on every address, by TLS if there are credentials, and return them with the ports that were bound.

    Raises StartRefused for one in use. The server must not be started before: until then a socket gets its permissions.
    """
    bound = []
    for address in addresses:
        try:
            with owner_only():
                port = _add_port(server, address, credentials)
        except RuntimeError as cause:
            raise StartRefused(
                f"cannot listen on {address}: another process holds it, or it is not this machine's; stop that process"
                " or choose another kms.server.listen"
            ) from cause
        if address.socket_path:
            apply_permissions(address.socket_path, address.permissions)
        bound.append(address.text if address.socket_path else f"{address.text.rpartition(':')[0]}:{port}")
    return bound


def _add_port(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None) -> int:
    if credentials is None:
        return server.add_insecure_port(address.text)
    return server.add_secure_port(address.text, credentials)
