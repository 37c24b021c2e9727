"""Provider aws end to end: a real daemon, the real SDK, moto as a real HTTP server."""

import asyncio
import base64
import re
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import boto3  # type: ignore[import-untyped]
import botocore.session
import grpc
import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import (
    AsyncKmsClient,
    FailedPrecondition,
    InvalidRequest,
    KmsClient,
    KmsClientError,
    Unavailable,
)
from betrace_kms_server import app
from betrace_kms_server.operations import monitor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.aws_proxy import aws_proxy
from tests.daemon import running, settings, spawned

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

KEY_STATES = botocore.session.get_session().get_service_model("kms").shape_for("KeyState").enum
SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


@asynccontextmanager
async def aws_client(data_dir: Path, url: str, key: str) -> AsyncIterator[AsyncKmsClient]:
    """Run a daemon on a KMS endpoint and give a client of it."""
    async with (
        running(data_dir, **aws(url, key)) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        yield client


async def watched(address: str, service: str = "betrace.kms.v1.KeyManagementService") -> AsyncGenerator[str, None]:
    """Yield the states of a service as a health watch tells them."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        async for answer in stub.Watch(request, timeout=20):
            yield health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def aws(url: str, key: str) -> dict[str, str]:
    """Return the settings of provider aws for an endpoint and key."""
    return {
        "betrace_kms_provider": "aws",
        "aws_kms_master_key_id": key,
        "aws_kms_region": "us-east-1",
        "aws_kms_endpoint": url,
        "kms_store_allow_ephemeral": "true",
    }


async def test_warm_calls_cost_nothing_and_a_restart_costs_one_decrypt(
    tmp_path: Path, moto: "MotoServer", kms_key: str
) -> None:
    """1,000 SignSpan and 1,000 Encrypt from a cold start: one GenerateDataKey for each kind of key, no Decrypt.

    Each start adds the round trip by which the daemon learns that it may use the master key.
    """
    moto.calls.clear()
    async with aws_client(tmp_path, moto.url, kms_key) as client:
        for _ in range(10):
            await asyncio.gather(
                *(client.sign_span("acme", SPAN) for _ in range(100)),
                *(client.encrypt("acme", b"payload") for _ in range(100)),
            )
        first = await client.sign_span("acme", SPAN)
    cold = dict(moto.calls)
    moto.calls.clear()
    async with aws_client(tmp_path, moto.url, kms_key) as client:
        for _ in range(10):
            second = await client.sign_span("acme", SPAN)
    assert (cold["GenerateDataKey"], cold["Decrypt"]) == (1 + 2, 1 + 0)
    assert (moto.calls["GenerateDataKey"], moto.calls["Decrypt"]) == (1 + 0, 1 + 1)
    assert second == first


async def test_a_thousand_messages_of_one_data_key_cost_one_decrypt(
    tmp_path: Path, moto: "MotoServer", kms_key: str
) -> None:
    """Decrypt caches unwrapped data keys, so opening is warm from the second message on."""
    async with aws_client(tmp_path, moto.url, kms_key) as client:
        sealed = [(await client.encrypt("acme", b"payload %d" % number)).ciphertext_blob for number in range(1000)]
    moto.calls.clear()
    async with aws_client(tmp_path, moto.url, kms_key) as client:
        opened = [(await client.decrypt("acme", message)).plaintext for message in sealed]
    assert opened == [b"payload %d" % number for number in range(1000)]
    assert moto.calls["Decrypt"] == 1 + 1  # the round trip of the start


async def test_a_disabled_master_key_is_named_and_the_daemon_serves_once_it_is_enabled(
    tmp_path: Path, moto: "MotoServer", kms_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon starts, says NOT_SERVING, refuses cold calls with what to do, and recovers by itself."""
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.05)
    moto.kms().disable_key(kms_key)
    async with app.running(settings(tmp_path, **aws(moto.url, kms_key))) as daemon:
        async with AsyncKmsClient(daemon.addresses[0]) as client:
            with pytest.raises(FailedPrecondition, match="is enabled") as caught:
                await client.sign_span("acme", SPAN)
            states = watched(daemon.addresses[0])
            before = await anext(states)
            moto.kms().enable_key(kms_key)
            after = await anext(states)
            await states.aclose()
            await client.sign_span("acme", SPAN)
    assert (before, after, caught.value.reason) == ("NOT_SERVING", "SERVING", "MASTER_KEY_UNUSABLE")


async def test_an_outage_of_kms_shows_in_kms_and_not_in_the_service(
    tmp_path: Path, moto: "MotoServer", kms_key: str
) -> None:
    """Warm keys serve through an outage, so the backend's pods must stay ready; only `kms` follows the provider."""
    async with running(tmp_path, **aws(moto.url, kms_key), kms_health_check_seconds="1") as daemon:
        states = watched(daemon.addresses[0], "kms")
        before = await anext(states)
        moto.kms().disable_key(kms_key)
        during = await anext(states)
        service = watched(daemon.addresses[0])
        ready = await anext(service)
        moto.kms().enable_key(kms_key)
        after = await anext(states)
        await states.aclose()
        await service.aclose()
    assert (before, during, ready, after) == ("SERVING", "NOT_SERVING", "SERVING", "SERVING")


async def test_warm_tenants_are_served_while_kms_is_away(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """With the master key gone after the first calls, warm ones go on and cold ones are told why."""
    async with aws_client(tmp_path, moto.url, kms_key) as client:
        await client.sign_span("acme", SPAN)
        await client.encrypt("acme", b"payload")
        moto.kms().disable_key(kms_key)
        await client.sign_span("acme", SPAN)
        await client.encrypt("acme", b"payload")
        with pytest.raises(FailedPrecondition):
            await client.encrypt("rival", b"payload")


def test_the_start_names_region_key_and_endpoint(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """In the seed's words, with the endpoint that the SDK resolved."""
    given = {name.upper(): value for name, value in aws(moto.url, kms_key).items()}
    with spawned("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", environ=given) as daemon:
        daemon.wait_for(f"Using AWS KMS - region: us-east-1, key: {kms_key}")
        daemon.wait_for(f"AWS KMS endpoint: {moto.url}")
        daemon.wait_for("KMS is usable, serving")


def test_a_changed_master_key_is_left_step_by_step(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """As docs/master-key-change.md tells: list the old key, let signing keys move, re-encrypt, remove the old key."""
    new_key = moto.create_key()
    arguments = ("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0")

    def environment(key: str, former: str = "") -> dict[str, str]:
        given = {name.upper(): value for name, value in aws(moto.url, key).items()}
        return given | {"AWS_KMS_DECRYPT_KEY_IDS": former}

    with spawned(*arguments, environ=environment(kms_key)) as daemon, KmsClient(daemon.address) as client:
        first = client.sign_span("acme", SPAN)
        sealed = client.encrypt("acme", b"payload").ciphertext_blob
    with spawned(*arguments, environ=environment(new_key)) as daemon, KmsClient(daemon.address) as client:
        with pytest.raises(InvalidRequest, match=r"list that key in aws\.kms\.decrypt-key-ids"):
            client.decrypt("acme", sealed)
        with pytest.raises(FailedPrecondition, match=kms_key):
            client.sign_span("acme", SPAN)
        daemon.wait_for(f"they were wrapped by {kms_key}: list it in aws.kms.decrypt-key-ids")
    with spawned(*arguments, environ=environment(new_key, kms_key)) as daemon, KmsClient(daemon.address) as client:
        daemon.wait_for("A former master key is usable for Decrypt")
        daemon.wait_for("Signing keys were moved to the master key")
        resealed = client.re_encrypt("acme", sealed).ciphertext_blob
    moto.kms().disable_key(kms_key)
    with spawned(*arguments, environ=environment(new_key)) as daemon, KmsClient(daemon.address) as client:
        assert client.decrypt("acme", resealed).plaintext == b"payload"
        assert client.sign_span("acme", SPAN) == first
    with spawned(*arguments, environ=environment(new_key, kms_key)) as daemon:
        daemon.wait_for("A former master key cannot be used")
        daemon.wait_for("KMS is usable, serving")


def test_without_kms_the_daemon_starts_and_says_that_it_cannot_reach_it(tmp_path: Path, moto: "MotoServer") -> None:
    """KMS failing at start is never an exit: liveness holds, readiness does not, calls are told to come again."""
    key = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
    given = {name.upper(): value for name, value in aws("http://127.0.0.1:1", key).items()}
    given["AWS_KMS_CALL_TIMEOUT_MS"] = "300"
    with spawned("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", environ=given) as daemon:
        daemon.wait_for("KMS cannot be used: no answer from KMS to kms:DescribeKey")
        with KmsClient(daemon.address) as client, pytest.raises(Unavailable) as caught:
            client.sign_span("acme", SPAN)
        assert daemon.process.poll() is None
    assert (caught.value.reason, caught.value.retry_after) == ("KMS_UNREACHABLE", 1.0)


async def test_a_missing_decrypt_shows_before_it_is_needed(
    tmp_path: Path, moto: "MotoServer", kms_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness, status, `kms` and validate name kms:Decrypt while the service serves, until it is allowed."""
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.05)
    with aws_proxy(moto.url) as proxy:
        proxy.always("deny", "Decrypt")
        async with running(tmp_path, **aws(proxy.url, kms_key)) as daemon, aiohttp.ClientSession() as session:
            url = f"http://{daemon.ops_address}"
            async with session.get(f"{url}/q/health/ready") as answer:
                ready, denied = answer.status, (await answer.json())["checks"][0]["data"]
            async with session.get(f"{url}/api/admin/kms/status") as answer:
                status = await answer.json()
            async with session.post(f"{url}/api/admin/kms/validate") as answer:
                decrypt = (await answer.json())["tests"]["decrypt"]
            async with session.get(f"{url}/q/metrics") as answer:
                metrics = await answer.text()
            states = watched(daemon.addresses[0], "kms")
            before = await anext(states)
            proxy.always("pass")
            after = await anext(states)
            await states.aclose()
            async with session.get(f"{url}/q/health/ready") as answer:
                allowed = answer.status
    assert (503, "NOT_SERVING", "SERVING", 200) == (ready, before, after, allowed)
    assert "KMS denies kms:Decrypt" in denied["error"]
    assert "KMS denies kms:Decrypt" in status["kms"]["error"]
    assert (True, False) == (status["serving"], status["kms"]["usable"])
    assert decrypt.startswith("FAIL: KMS denies kms:Decrypt")
    assert "\nkms_up 0.0" in metrics


@pytest.mark.parametrize("size", [0, 3, 33])
async def test_a_bad_answer_is_refused_counted_and_not_repeated(
    tmp_path: Path, moto: "MotoServer", kms_key: str, size: int
) -> None:
    """Nothing is sealed or handed out, the caller gets a reason that says what to check, and there is a metric."""
    with aws_proxy(moto.url) as proxy:
        async with (
            running(tmp_path, **aws(proxy.url, kms_key)) as daemon,
            AsyncKmsClient(daemon.addresses[0]) as client,
            aiohttp.ClientSession() as session,
        ):
            async with session.get(f"http://{daemon.ops_address}/q/health/ready") as answer:
                assert answer.status == 200

            def doctor(action: str, answer: dict[str, Any]) -> None:
                if action == "GenerateDataKey":
                    answer["Plaintext"] = base64.b64encode(bytes(size)).decode()

            proxy.doctor = doctor
            proxy.calls.clear()
            failures = []
            for call in (
                client.encrypt("acme", b"payload"),
                client.generate_data_key("acme"),
                client.sign_span("acme", SPAN),
            ):
                with pytest.raises(KmsClientError) as caught:
                    await call
                failures.append((caught.value.reason, caught.value.retry_after))
            async with session.get(f"http://{daemon.ops_address}/q/metrics") as answer:
                metrics = await answer.text()
    assert [("KMS_BAD_ANSWER", None)] * 3 == failures
    assert 3 == proxy.calls["GenerateDataKey"]
    assert 'kms_errors_total{operation="GenerateDataKey",reason="KMS_BAD_ANSWER"} 3.0' in metrics


def state_is(state: str) -> Any:
    """Return a doctor that gives the master key a state."""

    def doctor(action: str, answer: dict[str, Any]) -> None:
        if action == "DescribeKey":
            answer["KeyMetadata"]["KeyState"] = state

    return doctor


@pytest.mark.parametrize("state", [*KEY_STATES, "SomeStateOfTheFuture"])
async def test_only_what_somebody_decided_drops_warm_keys(
    tmp_path: Path, moto: "MotoServer", kms_key: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custom key store that is away, and a state that we do not know, leave warm keys where they are."""
    monkeypatch.setattr(app, "READY_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.05)
    with aws_proxy(moto.url) as proxy:
        async with running(tmp_path, **aws(proxy.url, kms_key)) as daemon, aiohttp.ClientSession() as session:
            async with AsyncKmsClient(daemon.addresses[0]) as client:
                await client.encrypt("acme", b"payload")
            async with session.get(f"http://{daemon.ops_address}/q/health/ready"):
                proxy.doctor = state_is(state)
            async with session.get(f"http://{daemon.ops_address}/q/health/ready") as answer:
                status = answer.status
            async with session.get(f"http://{daemon.ops_address}/q/metrics") as answer:
                shown = re.findall(r'^kms_master_key_state{state="(\w+)"} 1\.0$', await answer.text(), re.MULTILINE)
            warm = sum(map(len, daemon.caches))
    assert status == (200 if state in {"Enabled", "Updating"} else 503)
    assert shown == [
        {"Updating": "Enabled", "Creating": "Unknown", "SomeStateOfTheFuture": "Unknown"}.get(state, state)
    ]
    assert warm == (0 if state in {"Disabled", "PendingDeletion", "PendingReplicaDeletion", "PendingImport"} else 1)


def test_plain_moto_serves(tmp_path: Path, moto: "MotoServer") -> None:
    """A key that was made without --key-usage, in moto as it comes from its makers, is what the API's defaults say."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as plain:
        try:
            assert plain.stderr is not None
            next(line for line in plain.stderr if "Running on" in line)
            url = f"http://127.0.0.1:{port}"
            made = boto3.client("kms", endpoint_url=url, region_name="us-east-1").create_key()["KeyMetadata"]
            given = {name.upper(): value for name, value in aws(url, made["Arn"]).items()}
            with spawned("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", environ=given) as daemon:
                daemon.wait_for("KMS is usable, serving")
                with KmsClient(daemon.address) as client:
                    assert client.decrypt("acme", client.encrypt("acme", b"payload").ciphertext_blob).plaintext
        finally:
            plain.terminate()
    assert "KeyUsage" not in made
