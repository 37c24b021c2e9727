"""Content of any size, sealed and opened in the caller's process under keys of the daemon."""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from betrace_kms_client import AsyncKmsClient, InvalidRequest, KmsClient
from betrace_kms_envelope import FRAME_BYTES, Message

from tests.daemon import COMMAND, Process
from tests.integration.conftest import Run

SIZES = [0, 1, FRAME_BYTES, 5 * 1024 * 1024 + 3]
CONTEXT = {"file": "Ωmega"}


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311  # test data


@pytest.fixture
def client(daemon: Process) -> Iterator[KmsClient]:
    with KmsClient(daemon.address) as client:
        yield client


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("size", SIZES)
def test_files_of_any_size_come_back(client: KmsClient, tmp_path: Path, size: int) -> None:
    """In place too, readable by their owner only; past the message limit nobody is asked."""
    file = tmp_path / "file"
    file.write_bytes(content(size))
    progress: list[int] = []
    client.encrypt_file("acme", file, file, CONTEXT, progress=progress.append)
    assert (sum(progress), file.stat().st_mode & 0o777) == (size, 0o600)
    message = Message.parse(file.read_bytes())
    assert message.context == {**CONTEXT, "tenantId": "acme", "keyType": "encryption"}
    client.decrypt_file("acme", file, tmp_path / "opened", CONTEXT)
    assert (tmp_path / "opened").read_bytes() == content(size)
    assert names(tmp_path) == ["file", "opened"]


@pytest.mark.parametrize("size", SIZES)
async def test_files_with_the_async_client(daemon: Process, tmp_path: Path, size: int) -> None:
    """The same as coroutines, and each opens what the other sealed."""
    file, sealed, opened = tmp_path / "file", tmp_path / "sealed", tmp_path / "opened"
    file.write_bytes(content(size))
    async with AsyncKmsClient(daemon.address) as client:
        await client.encrypt_file("acme", file, sealed, CONTEXT)
        await client.decrypt_file("acme", sealed, opened, CONTEXT)
        assert opened.read_bytes() == content(size)

        async def pieces(data: bytes) -> AsyncIterator[bytes]:
            for at in range(0, len(data), 100_003):
                yield data[at : at + 100_003]

        message = b"".join([part async for part in client.encrypt_stream("acme", pieces(content(size)), CONTEXT)])
        found = b"".join([part async for part in client.decrypt_stream("acme", pieces(message), CONTEXT)])
    assert found == content(size)
    with KmsClient(daemon.address) as other:
        assert b"".join(other.decrypt_stream("acme", [message], CONTEXT)) == content(size)
        assert b"".join(other.decrypt_stream("acme", [sealed.read_bytes()], CONTEXT)) == content(size)
        assert Message.parse(b"".join(other.encrypt_stream("acme", [b"a", b"", b"b"]))).context["tenantId"] == "acme"


def test_what_encrypt_sealed_opens_as_a_file(client: KmsClient, tmp_path: Path) -> None:
    """Its key never leaves the daemon, so the daemon opens it; a small message sealed here opens there."""
    (tmp_path / "sealed").write_bytes(client.encrypt("acme", b"text", CONTEXT).ciphertext_blob)
    client.decrypt_file("acme", tmp_path / "sealed", tmp_path / "opened", CONTEXT)
    assert (tmp_path / "opened").read_bytes() == b"text"
    client.encrypt_file("acme", tmp_path / "opened", tmp_path / "sealed", CONTEXT)
    assert client.decrypt("acme", (tmp_path / "sealed").read_bytes(), CONTEXT).plaintext == b"text"


def test_a_key_of_encrypt_is_not_given_out(client: KmsClient) -> None:
    """It seals other messages of the tenant too; nor is it told apart for another tenant."""
    header = Message.parse(client.encrypt("acme", b"text", CONTEXT).ciphertext_blob).header
    with pytest.raises(InvalidRequest, match="open it with Decrypt"):
        client.open_message_key("acme", header, CONTEXT)
    for tenant_id, context in (("other", CONTEXT), ("acme", {}), ("acme", {"file": "another"})):
        with pytest.raises(InvalidRequest, match="does not open") as refusal:
            client.open_message_key(tenant_id, header, context)
        assert refusal.value.reason == "CIPHERTEXT_DOES_NOT_OPEN"


def test_a_message_key_is_for_its_tenant_context_and_header(client: KmsClient) -> None:
    """Everything else gets the one text; each key is new."""
    message = Message.parse(b"".join(client.encrypt_stream("acme", [b"text"], CONTEXT)))
    key = client.open_message_key("acme", message.header, CONTEXT)
    assert message.open(key.raw) == b"text"
    flipped = bytearray(message.header)
    flipped[-1] ^= 1
    other = Message.parse(b"".join(client.encrypt_stream("acme", [b"text"], CONTEXT))).header
    mixed = message.header[:35] + other[35:]
    for tenant_id, header, context in (
        ("other", message.header, CONTEXT),
        ("acme", message.header, {}),
        ("acme", bytes(flipped), CONTEXT),
        ("acme", message.header[:-1], CONTEXT),
        ("acme", message.header[:40], CONTEXT),
        ("acme", mixed, CONTEXT),
        ("acme", b"text", CONTEXT),
    ):
        with pytest.raises(InvalidRequest, match="does not open"):
            client.open_message_key(tenant_id, header, context)
    with pytest.raises(InvalidRequest, match="message_header is empty"):
        client.open_message_key("acme", b"", CONTEXT)
    first, second = (client.generate_message_key("acme", CONTEXT) for _ in range(2))
    assert first.material.raw != second.material.raw
    assert (len(first.material), repr(first).count("\\x")) == (32, 0)


def altered(message: bytes) -> Iterator[bytes]:
    yield message[:-1]
    yield message[: len(message) // 2]
    yield message[:100]
    yield message + b"\0"
    yield b""
    yield b"no message"
    for at in (200, len(message) // 2, len(message) - 1):
        yield message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def test_a_file_that_is_not_whole_and_true_leaves_nothing(client: KmsClient, tmp_path: Path) -> None:
    """No plaintext, under any name, and what was there stays."""
    message = b"".join(client.encrypt_stream("acme", [content(3 * FRAME_BYTES)]))
    file, target = tmp_path / "file", tmp_path / "target"
    target.write_bytes(b"before")
    for each in altered(message):
        file.write_bytes(each)
        with pytest.raises(InvalidRequest) as refusal:
            client.decrypt_file("acme", file, target)
        assert refusal.value.reason == "CIPHERTEXT_DOES_NOT_OPEN"
        assert (target.read_bytes(), names(tmp_path)) == (b"before", ["file", "target"])


def test_cut_streams_say_so_at_their_end(client: KmsClient) -> None:
    """What was yielded had verified, but it is not all."""
    message = b"".join(client.encrypt_stream("acme", [content(3 * FRAME_BYTES)]))
    found = client.decrypt_stream("acme", [message[: 2 * FRAME_BYTES]])
    assert content(3 * FRAME_BYTES).startswith(next(found))
    with pytest.raises(InvalidRequest):
        list(found)
    with pytest.raises(InvalidRequest):
        list(client.decrypt_stream("acme", []))


async def test_cancelled_work_on_a_file_leaves_nothing(daemon: Process, tmp_path: Path) -> None:
    """The thread ends, and no half message takes the name."""
    file = tmp_path / "file"
    file.write_bytes(bytes(20 * 1024 * 1024))
    async with AsyncKmsClient(daemon.address) as client:
        await client.generate_message_key("acme")
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def progress(_size: int) -> None:
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.01)

        work = asyncio.create_task(client.encrypt_file("acme", file, tmp_path / "sealed", progress=progress))
        await begun.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert names(tmp_path) == ["file"]


# The sealer.


def test_a_sealer_asks_for_a_key_once(client: KmsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads seal; what it sealed opens by itself, by others and by the daemon."""
    calls: list[str] = []
    counted(client, calls, monkeypatch)
    with client.sealer("acme", CONTEXT) as sealer, ThreadPoolExecutor(8) as pool:
        messages = list(pool.map(lambda number: sealer.seal(b"%d" % number), range(200)))
        assert calls == ["generate_message_key"]
        assert [sealer.open(message) for message in messages] == [b"%d" % number for number in range(200)]
        assert calls == ["generate_message_key", "open_message_key"]
        assert sealer.open(client.encrypt("acme", b"text", CONTEXT).ciphertext_blob) == b"text"
        for message in (messages[0][:-1], b"", b"text"):
            with pytest.raises(InvalidRequest, match="does not open"):
                sealer.open(message)
    assert client.decrypt("acme", messages[7], CONTEXT).plaintext == b"7"
    with client.sealer("acme") as other, pytest.raises(InvalidRequest, match="does not open"):
        other.open(messages[0])


async def test_a_sealer_of_the_async_client(daemon: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key for all that seal at a time, a new one after `max_messages` and after `ttl`."""
    calls: list[str] = []
    async with AsyncKmsClient(daemon.address) as client:
        counted(client, calls, monkeypatch)
        async with client.sealer("acme", CONTEXT, max_messages=100) as sealer:
            messages = await asyncio.gather(*(sealer.seal(b"%d" % number) for number in range(250)))
            assert calls == ["generate_message_key"] * 3
            assert [await sealer.open(message) for message in messages] == [b"%d" % number for number in range(250)]
            assert calls[3:] == ["open_message_key"] * 3
            assert len({Message.parse(message).fields for message in messages}) == 3
        async with client.sealer("acme", CONTEXT, ttl=0.05) as sealer:
            first = await sealer.seal(b"")
            await asyncio.sleep(0.1)
            assert Message.parse(await sealer.seal(b"")).fields != Message.parse(first).fields


def counted(client: object, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note the calls that a client makes for keys."""

    def noting(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object) -> object:
            calls.append(name)
            return call(*arguments)

        return noted

    for name in ("generate_message_key", "open_message_key"):
        monkeypatch.setattr(client, name, noting(name, getattr(client, name)))


# The command.


def test_the_command_takes_any_size(run: Run, tmp_path: Path) -> None:
    """By files and by pipes."""
    data = content(9 * 1024 * 1024)
    (tmp_path / "file").write_bytes(data)
    assert run("encrypt", "--tenant", "acme", "file", "-o", "sealed").returncode == 0
    opened = run("decrypt", "--tenant", "acme", "sealed", "-o", "opened")
    assert (opened.returncode, opened.stderr, (tmp_path / "opened").read_bytes()) == (0, b"", data)
    piped = run("encrypt", "--tenant", "acme", stdin=data)
    assert piped.returncode == 0
    assert run("decrypt", "--tenant", "acme", "--stream", stdin=piped.stdout).stdout == data


def test_the_command_says_what_a_large_result_needs(run: Run, tmp_path: Path) -> None:
    """A place where it appears whole, and no JSON; what does not open leaves nothing."""
    data = bytes(9 * 1024 * 1024)
    sealed = run("encrypt", "--tenant", "acme", stdin=data).stdout
    for arguments, stdin, text in (
        (["encrypt", "--json"], data, b"too large for --json"),
        (["decrypt", "--json"], sealed, b"too large for --json"),
        (["decrypt"], sealed, b"--output FILE"),
    ):
        refused = run(arguments[0], "--tenant", "acme", *arguments[1:], stdin=stdin)
        assert (refused.returncode, refused.stdout) == (2, b"")
        assert text in refused.stderr
    for each in (sealed[:-1], sealed[: 5 * 1024 * 1024], data):
        refused = run("decrypt", "--tenant", "acme", "-o", "opened", stdin=each)
        assert (refused.returncode, names(tmp_path)) == (3, [])
        assert b"does not open" in refused.stderr


def test_a_killed_command_leaves_no_plaintext(daemon: Process, run: Run, tmp_path: Path) -> None:
    """Not even under a name that nobody knows."""
    sealed = run("encrypt", "--tenant", "acme", stdin=content(9 * 1024 * 1024)).stdout
    command = [str(COMMAND), "decrypt", "--tenant", "acme", "-o", str(tmp_path / "opened"), "--addr", daemon.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdin is not None
        process.stdin.write(sealed[: 6 * 1024 * 1024])
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not any("(deleted)" in os.readlink(each) for each in descriptors(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert names(tmp_path) == []


def descriptors(pid: int) -> list[Path]:
    return [each for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]
