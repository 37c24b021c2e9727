"""The policy: what its file may say, what it allows, and what it remembers."""

import os
import random
import string
from contextlib import suppress
from pathlib import Path

import pytest
from betrace_kms_server.access import policy as policies
from betrace_kms_server.access.identity import ANONYMOUS, Caller
from betrace_kms_server.access.policy import OPERATIONS, InvalidPolicy, parse_policy
from betrace_kms_server.access.policy_file import PolicyFile
from betrace_kms_server.core.errors import CallerNotAllowed, StartRefused, Unauthenticated
from structlog.testing import capture_logs

GOOD = b"""
[[rule]]
name = "backend"
identities = ["backend", "spiffe://example.org/ns/eu/*"]
tenants = ["acme", "eu-*"]
operations = ["SignSpan", "VerifySpan"]

[[rule]]
name = "reporting"
identities = ["*"]
tenants = ["*"]
operations = ["GetPublicKeys"]
"""
RULE = 'name = "n"\nidentities = ["a"]\ntenants = ["t"]\noperations = ["SignSpan"]\n'


def rule(**changes: str | None) -> bytes:
    """Return a policy of one rule whose members are changed or left out."""
    lines = {line.partition(" =")[0]: line for line in RULE.splitlines()}
    for name, value in changes.items():
        if value is None:
            del lines[name]
        else:
            lines[name] = f"{name} = {value}"
    return ("[[rule]]\n" + "\n".join(lines.values())).encode()


ALLOWED = [
    ("backend", "SignSpan", "acme", "backend"),
    ("backend", "VerifySpan", "eu-", "backend"),
    ("spiffe://example.org/ns/eu/sa/api", "SignSpan", "eu-west", "backend"),
    ("anyone", "GetPublicKeys", "globex", "reporting"),
]
DENIED = [
    ("backend", "SignSpan", "acme2"),
    ("backend", "SignSpan", "acm"),
    ("backend", "SignSpan", "ACME"),
    ("backend", "SignSpan", ""),
    ("backend", "SignSpans", "acme"),
    ("backend", "Decrypt", "acme"),
    ("backend2", "SignSpan", "acme"),
    ("Backend", "SignSpan", "acme"),
    ("spiffe://example.org/ns/us/sa/api", "SignSpan", "acme"),
    ("spiffe://example.org/ns/eu", "SignSpan", "acme"),
    ("eu-*", "SignSpan", "acme"),
    ("*", "SignSpan", "acme"),
    ("backend", "SignSpan", "*"),
    ("backend", "*", "acme"),
]


@pytest.mark.parametrize(("identity", "operation", "tenant", "by"), ALLOWED)
def test_allowed(identity: str, operation: str, tenant: str, by: str) -> None:
    """By the first rule that matches, which is named."""
    assert by == parse_policy(GOOD).check(Caller(identity, "token"), operation, tenant)


@pytest.mark.parametrize(("identity", "operation", "tenant"), DENIED)
def test_refused_by_rules(identity: str, operation: str, tenant: str) -> None:
    """What no rule allows is denied, in words that name caller and operation, and neither tenant nor rule."""
    with pytest.raises(CallerNotAllowed) as refusal:
        parse_policy(GOOD).check(Caller(identity, "token"), operation, tenant)
    assert identity in refusal.value.message
    assert operation in refusal.value.message
    assert {"identity": identity, "operation": operation} == refusal.value.metadata
    assert not any(word in refusal.value.message for word in ("acme", "eu-west", "reporting"))


SUBJECT = "CN=Zahlungsdienst Süd,O=Example AG"


@pytest.mark.parametrize(
    "pattern", [SUBJECT, "CN=Zahlungsdienst *", SUBJECT + "*", "spiffe://example.org/" + "a" * 2027]
)
def test_identity_may_be_any_name_of_a_certificate(pattern: str) -> None:
    """Subjects have blanks and letters of every script, and a SPIFFE id has up to 2,048 characters."""
    name = pattern if pattern.startswith("spiffe") else SUBJECT
    policy = parse_policy(rule(identities=f'["{pattern}"]'))
    assert "n" == policy.check(Caller(name, "certificate"), "SignSpan", "t")
    with pytest.raises(CallerNotAllowed):
        policy.check(Caller(name[:-20], "certificate"), "SignSpan", "t")


def test_caller_without_a_name_is_no_one() -> None:
    """Even where a rule is for everybody."""
    with pytest.raises(Unauthenticated):
        parse_policy(GOOD).check(ANONYMOUS, "GetPublicKeys", "acme")


INVALID: dict[str, bytes] = {
    "nothing": b"",
    "no rule": b"rule = []",
    "no TOML": b"[[rule]\nname",
    "JSON": b'{"rule": []}',
    "YAML": b"rule:\n  - name: n\n",
    "UTF-16": GOOD.decode().encode("utf-16"),
    "zero bytes": bytes(100),
    "another table": b"[[rules]]\n" + RULE.encode(),
    "a member beside the rules": b"version = 1\n" + rule(),
    "a misspelled member": rule() + b'\ntenant = ["t"]',
    "no name": rule(name=None),
    "an empty name": rule(name='""'),
    "no identities": rule(identities=None),
    "no tenants": rule(tenants=None),
    "no operations": rule(operations=None),
    "empty identities": rule(identities="[]"),
    "empty tenants": rule(tenants="[]"),
    "empty operations": rule(operations="[]"),
    "a text for a list": rule(tenants='"acme"'),
    "a number": rule(tenants="[1]"),
    "a tenant with a blank": rule(tenants='["ac me"]'),
    "a tenant with a star inside": rule(tenants='["a*e"]'),
    "an empty tenant": rule(tenants='[""]'),
    "two stars": rule(tenants='["**"]'),
    "two stars for identities": rule(identities='["**"]'),
    "a long identity": rule(identities=f'["{"a" * 2049}"]'),
    "a long tenant": rule(tenants=f'["{"a" * 129}"]'),
    "an identity with a star inside": rule(identities='["a*e"]'),
    "an empty identity": rule(identities='[""]'),
    "an identity with a line break": rule(identities='["a\\nb"]'),
    "an unknown operation": rule(operations='["Sign"]'),
    "an operation of the admin service": rule(operations='["RotateKeys"]'),
    "an operation in lower case": rule(operations='["signspan"]'),
    "a prefix of operations": rule(operations='["Sign*"]'),
    "one name twice": rule() + b"\n" + rule(),
    "one member twice": rule() + b'\nname = "m"',
    "deep nesting": b"a = " + b"[" * 20_000,
}


@pytest.mark.parametrize("kind", INVALID)
def test_refused_invalid_file(kind: str, tmp_path: Path) -> None:
    """One sentence, no start; and for a daemon that runs, the rules that it has stay in force."""
    with pytest.raises(InvalidPolicy) as refusal:
        parse_policy(INVALID[kind])
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600
    path = written(tmp_path, INVALID[kind])
    with pytest.raises(StartRefused, match=r"kms\.policy\.file"):
        PolicyFile(path)
    path.write_bytes(GOOD)
    held = PolicyFile(path)
    path.write_bytes(INVALID[kind])
    with capture_logs() as logs:
        held.refresh()
        held.refresh()
    assert 1 == len(logs)
    assert logs[0]["event"].startswith("The policy stays what it was")
    assert "backend" == held.check(Caller("backend", "token"), "SignSpan", "acme")


def written(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    """Write a policy file."""
    path = folder / "policy.toml"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_reload_forgets_what_was_allowed(tmp_path: Path) -> None:
    """A changed file is in force at the next check, for callers that had been allowed too."""
    path, backend = written(tmp_path, GOOD), Caller("backend", "token")
    held = PolicyFile(path)
    assert held.check(backend, "SignSpan", "acme")
    path.write_bytes(GOOD.replace(b'"acme", ', b""))
    held.refresh()
    with pytest.raises(CallerNotAllowed):
        held.check(backend, "SignSpan", "acme")
    path.unlink()
    with capture_logs() as logs:
        held.refresh()
    assert "cannot be read" in logs[0]["event"]
    assert held.check(backend, "SignSpan", "eu-west")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_refused_file_that_others_write(tmp_path: Path, mode: int) -> None:
    """They would be the ones who say who may call."""
    with pytest.raises(StartRefused, match="is open to others"):
        PolicyFile(written(tmp_path, GOOD, mode))


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644])
def test_file_that_others_read_is_fine(tmp_path: Path, mode: int) -> None:
    """It is no secret."""
    assert PolicyFile(written(tmp_path, GOOD, mode))


def test_refused_folder_that_others_write(tmp_path: Path) -> None:
    """They could exchange the file."""
    path = written(tmp_path, GOOD)
    tmp_path.chmod(0o777)
    with pytest.raises(StartRefused, match="can be written by others"):
        PolicyFile(path)
    tmp_path.chmod(0o1777)
    assert PolicyFile(path)


def test_folder_of_a_link_s_target_is_guarded_too(tmp_path: Path) -> None:
    """Whoever may write there could exchange the file behind the link for another."""
    target, folder = tmp_path / "target", tmp_path / "folder"
    target.mkdir()
    folder.mkdir(mode=0o755)
    written(target, GOOD)
    (folder / "policy.toml").symlink_to(target / "policy.toml")
    assert PolicyFile(folder / "policy.toml")
    target.chmod(0o777)
    with pytest.raises(StartRefused, match=f"{target} can be written by others"):
        PolicyFile(folder / "policy.toml")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("through_link", [False, True])
def test_refused_file_of_another_user(tmp_path: Path, through_link: bool) -> None:
    """Its owner may change it at any time."""
    path = written(tmp_path, GOOD)
    os.chown(path, 12345, 0)
    if through_link:
        path = tmp_path / "link.toml"
        path.symlink_to("policy.toml")
    with pytest.raises(StartRefused, match="belongs to user 12345"):
        PolicyFile(path)


def test_config_map_is_followed_and_its_exchange_noticed(tmp_path: Path) -> None:
    """Kubernetes mounts links, and exchanges one of them."""
    for version, content in (("v1", GOOD), ("v2", rule())):
        (tmp_path / version).mkdir()
        written(tmp_path / version, content, 0o644)
    data = tmp_path / "..data"
    data.symlink_to("v1")
    (tmp_path / "policy.toml").symlink_to("..data/policy.toml")
    held = PolicyFile(tmp_path / "policy.toml")
    assert held.check(Caller("backend", "token"), "SignSpan", "acme")
    data.unlink()
    data.symlink_to("v2")
    held.refresh()
    assert "n" == held.check(Caller("a", "token"), "SignSpan", "t")


def test_what_is_remembered_is_bounded_and_never_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that asks about many tenants fills no memory."""
    monkeypatch.setattr(policies, "MAX_REMEMBERED", 100)
    policy, backend = parse_policy(GOOD), Caller("backend", "token")
    for number in range(500):
        policy.check(backend, "SignSpan", f"eu-{number}")
        with pytest.raises(CallerNotAllowed):
            policy.check(backend, "SignSpan", f"us-{number}")
    policy.check(backend, "SignSpan", "eu-" + "x" * 1_000)
    assert 100 == len(policy._allowed)
    assert all(key[3].startswith("eu-") for key in policy._allowed)
    assert max(len(key[3]) for key in policy._allowed) < 130


def test_decision_is_remembered_for_its_credentials() -> None:
    """A reload of tokens is another revision, whose decisions are made anew."""
    policy = parse_policy(GOOD)
    for revision in (1, 1, 2):
        policy.check(Caller("backend", "token", revision), "SignSpan", "acme")
    assert 2 == len(policy._allowed)


def test_every_call_of_the_service_is_an_operation() -> None:
    """Batches too: what a rule does not name, it does not allow."""
    assert {"GenerateDataKey", "Encrypt", "Decrypt", "ReEncrypt", "SignSpan", "SignSpans"} <= set(OPERATIONS)
    for operation in OPERATIONS:
        assert parse_policy(rule(operations=f'["{operation}"]')).rule_for("a", operation, "t")


def test_damaged_file_is_never_more_than_refused() -> None:
    """Random bytes, and a good file with bytes changed, cut out and moved: valid, or InvalidPolicy."""
    chance = random.Random(7)  # noqa: S311  # so that a failure can be seen again
    for _ in range(300):
        damaged = bytearray(GOOD)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randint(0, 3)] = os.urandom(chance.randint(0, 3)) + chance.choice(
                string.punctuation
            ).encode() * chance.randint(0, 2)
        for content in (bytes(damaged), os.urandom(chance.randint(0, 200))):
            with suppress(InvalidPolicy):
                parse_policy(content)
