"""health: an exit code for an exec probe."""

import click
import grpc
from betrace.kms.v1 import key_management_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from betrace_kms_client.channel import normalised
from betrace_kms_client.cli.options import CALL_FAILED, client_options, given_credentials
from betrace_kms_client.credentials import open_channel
from betrace_kms_client.errors import KmsClientError, from_rpc_error

NOT_SERVING = 1
_DEFAULT_SERVICE = key_management_pb2.DESCRIPTOR.services_by_name["KeyManagementService"].full_name


@click.command(
    epilog="""\b
Examples:
  betrace-kms health                 # readiness: takes calls
  betrace-kms health --service ""    # liveness: the process answers
  betrace-kms health --service kms   # KMS answers now
"""
)
@click.option("--service", default=_DEFAULT_SERVICE, show_default=True, help="Service to ask for.")
@client_options
def health(service: str, addr: str, timeout: float) -> None:
    """Ask the daemon how it is. Prints SERVING or NOT_SERVING; exits with 1 unless SERVING.

    It needs no token; a TCP address with mutual TLS needs a certificate.
    """
    target = normalised(addr)
    try:
        with open_channel(target, given_credentials()) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)  # type: ignore[attr-defined]
    except KmsClientError as error:
        click.echo(f"betrace-kms: {error.message}", err=True)
        raise SystemExit(CALL_FAILED) from None
    except grpc.RpcError as error:
        click.echo(f"betrace-kms: {from_rpc_error(error, target).message}", err=True)
        raise SystemExit(CALL_FAILED) from None
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise SystemExit(NOT_SERVING)
