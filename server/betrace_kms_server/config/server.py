"""Settings of the edges: where the daemon listens, and what it shows operators."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from betrace_kms_server.config.values import Addresses, Group, OpsAddresses, Switch, WholeNumber, Words
from betrace_kms_server.host.sockets import Address, parse_addresses, parse_host_ports, refuse_exposed


class ServerSettings(BaseModel):
    """`kms.server.*`, `kms.quota.*`, `kms.policy.*`, `kms.health.*`, `kms.lock.*`, `kms.ops.*`, `kms.audit.*`,
    `kms.process.*` and `kms.log.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    token_file: Path | None = Field(
        None,
        alias="kms.server.token-file",
        description="bearer tokens of callers, one a line; a file with one is made if it is missing",
    )
    token_group: Group | None = Field(
        None, alias="kms.server.token-group", description="group, by number or name, that may read the token file"
    )
    tls_cert_file: Path | None = Field(
        None, alias="kms.server.tls.cert-file", description="certificate chain for TCP addresses, in PEM"
    )
    tls_key_file: Path | None = Field(
        None, alias="kms.server.tls.key-file", description="private key of the certificate, in PEM without a password"
    )
    tls_client_ca_file: Path | None = Field(
        None,
        alias="kms.server.tls.client-ca-file",
        description="authority that callers' certificates must come from, in PEM",
    )
    require_identity: Switch = Field(
        False,
        alias="kms.server.require-identity",
        description="refuse to start where an address lets in callers that are not authenticated",
    )
    listen: Addresses = Field(
        parse_addresses("127.0.0.1:50051"),
        alias="kms.server.listen",
        description="loopback `127.0.0.1:port`, `[::1]:port` and `unix:/path;identity=NAME;mode=0660;group=GID`,"
        " separated by commas; with `kms.server.tls.cert-file` any `host:port`",
    )
    max_message_bytes: WholeNumber = Field(
        4 * 1024 * 1024,
        alias="kms.server.max-message-bytes",
        ge=1024,
        le=1024**3,
        description="largest payload",
    )
    max_calls_in_flight: WholeNumber = Field(
        1_000,
        alias="kms.server.max-calls-in-flight",
        ge=1,
        le=100_000,
        description="calls in flight, beyond which a call that would have to wait gets `OVERLOADED`",
    )
    quota_tenant_burst: WholeNumber = Field(
        1_000,
        alias="kms.quota.tenant-burst",
        ge=1,
        le=1_000_000,
        description="calls that a tenant may make at once, where there is a quota",
    )
    quota_tenant_per_second: WholeNumber = Field(
        0,
        alias="kms.quota.tenant-per-second",
        ge=0,
        le=1_000_000,
        description="calls a second of one tenant, each item of a batch counted; 0 is no limit",
    )
    max_connections: WholeNumber = Field(
        1_000,
        alias="kms.server.max-connections",
        ge=10,
        le=100_000,
        description="connections of callers; past it those that never called, or were silent longest, are closed",
    )
    policy_file: Path | None = Field(
        None,
        alias="kms.policy.file",
        description="rules that say which caller may use which tenants (TOML); what none allows is denied",
    )
    reflection: Switch | None = Field(
        None,
        alias="kms.server.reflection",
        description="gRPC reflection, for grpcurl; on by default unless there is a policy",
    )
    drain_seconds: WholeNumber = Field(
        10,
        alias="kms.server.drain-seconds",
        ge=1,
        le=3_600,
        description="grace for calls in flight when the daemon stops",
    )
    health_check_seconds: WholeNumber = Field(
        30,
        alias="kms.health.check-seconds",
        ge=1,
        le=3_600,
        description="how often the master key is checked",
    )
    lock_check_seconds: WholeNumber = Field(
        5,
        alias="kms.lock.check-seconds",
        ge=1,
        le=3_600,
        description="how soon an emergency stop reaches other pods",
    )
    ops_listen: OpsAddresses = Field(
        parse_host_ports("127.0.0.1:9464"),
        alias="kms.ops.listen",
        description="`host:port` of HTTP, separated by commas: health, metrics and `/api/admin` on loopback; health and"
        " metrics alone on others",
    )
    ops_hosts: Words = Field(
        (),
        alias="kms.ops.hosts",
        description="names by which HTTP requests may call it, beside IP addresses and `localhost`",
    )
    audit_file: str | None = Field(None, alias="kms.audit.file", description="audit trail, `-` for stdout")
    audit_required: Switch = Field(
        False,
        alias="kms.audit.required",
        description="answer a call when its audit line is written, and refuse calls while that fails",
    )
    audit_durable: Switch = Field(
        False,
        alias="kms.audit.durable",
        description="answer a call when its audit line is synced to the disk; implies `kms.audit.required`",
    )
    process_dumpable: Switch = Field(
        False, alias="kms.process.dumpable", description="let debuggers of the same user read the daemon's memory"
    )
    log_format: Literal["console", "json"] = Field("console", alias="kms.log.format", description="form of the log")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="kms.log.level", description="least level that is logged"
    )

    @property
    def reflects(self) -> bool:
        """Whether there is reflection: what a policy hides, it would list."""
        return self.policy_file is None if self.reflection is None else self.reflection

    @field_validator("listen")
    @classmethod
    def _only_tls_is_exposed(cls, addresses: tuple[Address, ...], info: ValidationInfo) -> tuple[Address, ...]:
        if not info.data.get("tls_client_ca_file"):
            refuse_exposed(addresses)
        return addresses

    @model_validator(mode="after")
    def _tls_is_complete(self) -> "ServerSettings":
        given = [bool(path) for path in (self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file)]
        if any(given) and not all(given):
            raise ValueError(
                "mutual TLS is incomplete: set kms.server.tls.cert-file, .key-file and .client-ca-file, or none"
            )
        if self.token_group is not None and self.token_file is None:
            raise ValueError("kms.server.token-file is missing, and kms.server.token-group is set: give a path")
        return self

    @model_validator(mode="after")
    def _required_audit_needs_a_file(self) -> "ServerSettings":
        if self.audit_durable and self.audit_file in (None, "-"):
            raise ValueError("kms.audit.durable is set, and kms.audit.file names no file: give a path")
        if self.audit_required and self.audit_file is None:
            raise ValueError("kms.audit.file is missing, and kms.audit.required is set: give a path, or - for stdout")
        return self
