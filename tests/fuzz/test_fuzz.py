"""Mutated bytes never bring down a reader or the daemon. `make fuzz MINUTES=n` does it for longer."""

from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2, key_management_pb2

from tests.daemon import spawned
from tests.fuzz.mutation import mutations
from tests.fuzz.targets import TARGETS

INPUTS, CALLS = 1500, 100
SERVICES = (key_management_pb2, admin_pb2)
METHODS = [
    method
    for module in SERVICES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
OUR_FAULT = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_refuses_what_it_cannot_read(name: str) -> None:
    """1,500 mutated inputs: each is read, or refused by a type of error that the reader documents."""
    target = TARGETS[name]
    for number, data in enumerate(islice(mutations(target.seeds, seed=20_261_126), INPUTS)):
        try:
            target.check(data)
        except Exception as cause:
            raise AssertionError(f"{name}, input {number}: {data[:400]!r}") from cause


def test_a_daemon_answers_mutated_requests(tmp_path: Path) -> None:
    """100 mutated requests to each method: none is answered INTERNAL, and the daemon serves afterwards."""
    listen = f"unix:{tmp_path}/kms.sock"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", listen) as daemon:
        daemon.wait_for("serving")
        with (
            grpc.insecure_channel(listen) as public,
            grpc.insecure_channel(f"unix:{tmp_path}/data/admin.sock") as admin,
        ):
            for method in METHODS:
                channel = admin if "Admin" in method.containing_service.name else public
                path = f"/{method.containing_service.full_name}/{method.name}"
                call: Any = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
                seeds = [
                    b"\x0a\x04acme",
                    b"\x0a\x04acme\x12\x20" + bytes(32),
                    b"\x0a\x04acme\x12\x14\x0a\x10" + b"t" * 16,
                ]
                for data in islice(mutations(seeds, seed=20_261_127), CALLS):
                    answer = call.future(data, timeout=20)
                    assert answer.code() not in OUR_FAULT, (path, data[:400], answer.details())
            assert daemon.process.poll() is None
            path = "/betrace.kms.v1.KeyManagementService/GetPublicKeys"
            serve: Any = public.unary_unary(path, request_serializer=bytes)
            serve(b"\x0a\x04acme", timeout=20)
            assert "Traceback" not in daemon.log
