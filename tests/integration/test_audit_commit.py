"""Audit before answer, over real sockets and files: a line is in the file before its call is answered."""

# tests look at small files while nothing else runs

import asyncio
import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1 import admin_pb2_grpc
from betrace_kms_client import AsyncKmsClient, KmsClientError
from betrace_kms_server.core.errors import StartRefused

from tests.daemon import running, settings

MODES = ["required", "durable"]


class Disk:
    """Notes the order in which the audit file is written and synced, and can hold up or fail either."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.failure: dict[str, int] = {}
        self.lines_at_sync = 0
        self._calls: dict[str, Callable[..., Any]] = {"write": os.write, "fsync": os.fsync}

    def write(self, descriptor: int, data: Any) -> int:
        return int(self._step("write", descriptor, data))

    def fsync(self, descriptor: int) -> None:
        self._step("fsync", descriptor)
        if self._is_the_file(descriptor):
            self.lines_at_sync = self.lines()

    def lines(self) -> int:
        return self.file.read_bytes().count(b"\n")

    def _step(self, name: str, descriptor: int, *arguments: Any) -> Any:
        if self._is_the_file(descriptor):
            assert self.go.wait(30)
            if name in self.failure:
                raise OSError(self.failure[name], os.strerror(self.failure[name]))
            self.steps.append(name)
        return self._calls[name](descriptor, *arguments)

    def _is_the_file(self, descriptor: int) -> bool:
        return self.file.exists() and os.path.samestat(os.fstat(descriptor), self.file.stat())


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(tmp_path / "audit.log")
    monkeypatch.setattr(os, "write", disk.write)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    disk.go.set()


def options(disk: Disk, mode: str) -> dict[str, str]:
    return {"kms_audit_file": str(disk.file), f"kms_audit_{mode}": "true"}


def operations(file: Path) -> list[str]:
    return [json.loads(line)["operation"] for line in file.read_bytes().splitlines()]


@pytest.mark.parametrize("mode", MODES)
async def test_no_answer_leaves_before_its_line(disk: Disk, tmp_path: Path, mode: str) -> None:
    """An answer waits for the write of its line, and with `durable` for the sync, however long that takes."""
    async with running(tmp_path / "data", **options(disk, mode)) as daemon:
        async with AsyncKmsClient(daemon.addresses[0]) as client:
            await client.encrypt("acme", b"warm")
            disk.steps.clear()
            await client.encrypt("acme", b"x")
            disk.steps.append("answer")
            expected = ["write", "fsync", "answer"] if mode == "durable" else ["write", "answer"]
            assert expected == [step for step in disk.steps if step in expected]
            disk.go.clear()
            before = disk.lines()
            waiting = [asyncio.create_task(client.encrypt("acme", b"x")) for _ in range(5)]
            done, _ = await asyncio.wait(waiting, timeout=0.3)
            assert (0, before) == (len(done), disk.lines())
            disk.go.set()
            for call in asyncio.as_completed(waiting):
                await call
            assert before + 5 == disk.lines()


async def test_calls_share_a_sync(disk: Disk, tmp_path: Path) -> None:
    """What comes during a sync is written and synced together by the next one."""
    async with running(tmp_path / "data", **options(disk, "durable")) as daemon:
        async with AsyncKmsClient(daemon.addresses[0]) as client:
            await client.encrypt("acme", b"warm")
            disk.steps.clear()
            disk.go.clear()
            waiting = [asyncio.create_task(client.encrypt("acme", b"x")) for _ in range(50)]
            await asyncio.wait(waiting, timeout=0.3)
            disk.go.set()
            await asyncio.gather(*waiting)
            lines = disk.lines()
    assert {"write": 2, "fsync": 2} == Counter(disk.steps[:4])
    assert lines >= 50


@pytest.mark.parametrize(("step", "number"), [("write", errno.ENOSPC), ("write", errno.EIO), ("fsync", errno.EIO)])
async def test_what_cannot_be_recorded_has_no_result(disk: Disk, tmp_path: Path, step: str, number: int) -> None:
    """The caller gets UNAVAILABLE, and one that changed something learns that it did; then the daemon recovers."""
    async with running(tmp_path / "data", **options(disk, "durable")) as daemon:
        async with (
            AsyncKmsClient(daemon.addresses[0], timeout=5) as client,
            grpc.aio.insecure_channel(f"unix:{tmp_path}/data/admin.sock") as channel,
        ):
            admin = admin_pb2_grpc.KmsAdminServiceStub(channel)
            await client.encrypt("acme", b"warm")
            disk.failure[step] = number
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id="acme"))
            assert (grpc.StatusCode.UNAVAILABLE, True) == (
                refused.value.code(),
                (refused.value.details() or "").startswith("the change was made and stays, but it could not"),
            )
            with pytest.raises(grpc.aio.AioRpcError, match="the audit trail cannot be written"):
                await admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id="acme"))
            await admin.GetStatus(pb.GetStatusRequest())
            disk.failure.clear()
            async with asyncio.timeout(20):
                while True:
                    try:
                        await client.encrypt("acme", b"again")
                        break
                    except KmsClientError:
                        await asyncio.sleep(0.1)
    assert {"AuditStarted", "Encrypt", "InvalidateTenant", "AuditStopped"} <= set(operations(disk.file))


@pytest.mark.parametrize("mode", MODES)
async def test_a_moved_file(disk: Disk, tmp_path: Path, mode: str) -> None:
    """After a rotation the next line is in the new file before its answer."""
    async with running(tmp_path / "data", **options(disk, mode)) as daemon:
        async with AsyncKmsClient(daemon.addresses[0]) as client:
            await client.encrypt("acme", b"x")
            disk.file.rename(tmp_path / "audit.log.1")
            await client.decrypt("acme", (await client.encrypt("acme", b"x")).ciphertext_blob)
            assert ["Encrypt", "Decrypt"] == operations(disk.file)


async def test_what_no_call_waits_for_is_synced_soon(disk: Disk, tmp_path: Path) -> None:
    """With `required` alone the lines are synced a moment after they were written."""
    async with running(tmp_path / "data", **options(disk, "required")) as daemon:
        async with AsyncKmsClient(daemon.addresses[0]) as client:
            await client.encrypt("acme", b"x")
            lines = disk.lines()
            async with asyncio.timeout(20):
                while disk.lines_at_sync < lines:  # noqa: ASYNC110  # what a thread does sets no event
                    await asyncio.sleep(0.01)


async def test_durable_needs_a_file(tmp_path: Path) -> None:
    """What cannot be synced is refused at the start."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(StartRefused, match="only one can be synced"):
            async with running(tmp_path / "data", kms_audit_file=str(tmp_path / "pipe"), kms_audit_durable="true"):
                pass
    finally:
        os.close(reader)
    for file in ({}, {"kms_audit_file": "-"}):
        with pytest.raises(Exception, match=r"kms\.audit\.durable is set, and kms\.audit\.file names no file"):
            settings(tmp_path / "data", kms_audit_durable="true", **file)
