"""Settings of the edges: where the daemon listens, and what it shows operators."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from betrace_kms_server.config.values import Addresses, OpsAddress, Switch, WholeNumber
from betrace_kms_server.host.sockets import parse_addresses, parse_host_port


class ServerSettings(BaseModel):
    """`kms.server.*`, `kms.health.*`, `kms.lock.*`, `kms.ops.*`, `kms.audit.*`, `kms.process.*` and `kms.log.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    listen: Addresses = Field(
        parse_addresses("127.0.0.1:50051"),
        alias="kms.server.listen",
        description="loopback `127.0.0.1:port`, `[::1]:port` and `unix:/path`, separated by commas",
    )
    max_message_bytes: WholeNumber = Field(
        4 * 1024 * 1024,
        alias="kms.server.max-message-bytes",
        ge=1024,
        le=1024**3,
        description="largest payload",
    )
    reflection: Switch = Field(True, alias="kms.server.reflection", description="gRPC reflection, for grpcurl")
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
    ops_listen: OpsAddress = Field(
        parse_host_port("127.0.0.1:9464"),
        alias="kms.ops.listen",
        description="`host:port` of health, metrics and status over HTTP; `[::]` is every IPv6 address",
    )
    audit_file: str | None = Field(None, alias="kms.audit.file", description="audit trail, `-` for stdout")
    audit_required: Switch = Field(
        False, alias="kms.audit.required", description="refuse calls while the audit trail cannot be written"
    )
    process_dumpable: Switch = Field(
        False, alias="kms.process.dumpable", description="let debuggers of the same user read the daemon's memory"
    )
    log_format: Literal["console", "json"] = Field("console", alias="kms.log.format", description="form of the log")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="kms.log.level", description="least level that is logged"
    )

    @model_validator(mode="after")
    def _required_audit_needs_a_file(self) -> "ServerSettings":
        if self.audit_required and self.audit_file is None:
            raise ValueError("kms.audit.file is missing, and kms.audit.required is set: give a path, or - for stdout")
        return self
