"""Settings: sources and their order, names that are refused, and the rules of the master key."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from betrace_kms_server.config.sources import (
    NAMES,
    Settings,
    Source,
    described,
    environment_name,
    from_command_line,
    from_environment,
    from_folder,
    from_properties,
    resolve,
)
from betrace_kms_server.core.errors import StartRefused
from pydantic import ValidationError

ARN = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"

SETUP_TUTORIAL = f"""\
# ========================================
# KMS Configuration
# ========================================

# KMS Provider (local, aws, vault, gcp, azure)
betrace.kms.provider=aws

# AWS KMS Configuration
aws.kms.master-key-id={ARN}
aws.kms.region=us-east-1

# Optional: Custom KMS endpoint (for LocalStack testing)
# aws.kms.endpoint=http://localhost:4566

# ========================================
# Cache Configuration (Optional)
# ========================================

# Cache TTL settings (defaults shown)
kms.cache.private-key-ttl-minutes=60
kms.cache.public-key-ttl-hours=24
kms.cache.encryption-key-ttl-minutes=60

# Maximum cache size (number of entries)
kms.cache.max-size=1000

# ========================================
# Key Rotation Configuration (Optional)
# ========================================

# Enable automatic key rotation
kms.rotation.enabled=true

# Rotation check schedule (cron: daily at 2 AM)
kms.rotation.check-cron=0 0 2 * * ?

# Maximum key age before rotation (NIST 800-57: 90 days)
kms.rotation.max-age-days=90
"""
"""The application.properties of BeTrace's AWS KMS setup tutorial, step 3.1."""


def settings_of(values: Mapping[str, str]) -> Settings:
    settings, _ = resolve([Source("test", values)])
    return settings


def aws(**values: str) -> Settings:
    """Resolve settings of provider aws; names without their prefix, underscores for dashes."""
    named = {f"aws.kms.{name.replace('_', '-')}": value for name, value in values.items()}
    return settings_of({"betrace.kms.provider": "aws", **named})


def properties(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "application.properties"
    file.write_bytes(text.encode("iso-8859-1"))
    return file


def mounted(folder: Path, values: Mapping[str, str]) -> Path:
    """Lay a folder out as Kubernetes mounts a ConfigMap: files are links through ..data to a dated folder."""
    dated = folder / "..2025_01_01_00_00_00.123456789"
    dated.mkdir(parents=True)
    (folder / "..data").symlink_to(dated.name)
    for name, value in values.items():
        (dated / name).write_text(value)
        (folder / name).symlink_to(Path("..data") / name)
    return folder


def test_defaults() -> None:
    """Without any source a daemon runs with the local provider on loopback, and every origin says default."""
    settings, origins = resolve([])
    assert ("local", None, "sqlite") == (settings.provider, settings.master_key_id, settings.store)
    assert ["127.0.0.1:50051"] == [address.text for address in settings.listen]
    assert Path("data") == settings.data_dir
    assert dict.fromkeys(NAMES, "default") == origins


def test_the_setup_tutorials_file_works_unchanged(tmp_path: Path) -> None:
    """An operator's existing file is taken as it is: every line of it is known and arrives."""
    source = from_properties(properties(tmp_path, SETUP_TUTORIAL))
    settings, origins = resolve([source])
    assert ("aws", ARN, "us-east-1", None) == (
        settings.provider,
        settings.master_key_id,
        settings.region,
        settings.endpoint,
    )
    assert (60, 24, 60, 1000) == (
        settings.private_key_ttl_minutes,
        settings.public_key_ttl_hours,
        settings.encryption_key_ttl_minutes,
        settings.cache_max_size,
    )
    assert (True, "0 0 2 * * ?", 90) == (
        settings.rotation_enabled,
        str(settings.rotation_check_cron),
        settings.rotation_max_age_days,
    )
    written = set(re.findall(r"^([a-z.-]+)=", SETUP_TUTORIAL, re.MULTILINE))
    assert written == {name for name, origin in origins.items() if origin != "default"} == set(source.values)


def test_sources_in_their_order(tmp_path: Path) -> None:
    """Command line, environment, folders in the order given, file, default: the strongest that has a name gives it."""
    names = [
        "kms.cache.max-size",
        "kms.cache.private-key-ttl-minutes",
        "kms.cache.public-key-ttl-hours",
        "kms.cache.encryption-key-ttl-minutes",
        "kms.server.drain-seconds",
    ]
    file = properties(tmp_path, "\n".join(f"{name}=1" for name in names))
    second = mounted(tmp_path / "second", dict.fromkeys(names[:4], "2"))
    first = mounted(tmp_path / "first", dict.fromkeys(names[:3], "3"))
    environment = {environment_name(name): "4" for name in names[:2]}
    settings, origins = resolve(
        [
            from_command_line({names[0]: "5"}),
            from_environment(environment),
            from_folder(first),
            from_folder(second),
            from_properties(file),
        ]
    )
    assert [5, 4, 3, 2, 1] == [getattr(settings, NAMES[name]) for name in names]
    assert ["command line", "environment", str(first), str(second), f"{file}, line 5"] == [
        origins[name] for name in names
    ]
    assert "default" == origins["kms.data-dir"]


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_empty_is_unset(empty: str) -> None:
    """An empty value hides no weaker source and no default, and is no origin."""
    settings, origins = resolve(
        [
            Source("strong", {"kms.cache.max-size": empty, "aws.kms.endpoint": empty}),
            Source("weak", {"kms.cache.max-size": "7"}),
        ]
    )
    assert (7, None) == (settings.cache_max_size, settings.endpoint)
    assert ("weak", "default") == (origins["kms.cache.max-size"], origins["aws.kms.endpoint"])


def test_white_space_around_values_is_dropped() -> None:
    """Files end in newlines and people align values."""
    assert Path("/var/lib/kms") == settings_of({"kms.data-dir": "  /var/lib/kms \n"}).data_dir


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("aws.kms.master-key-id", "AWS_KMS_MASTER_KEY_ID"),
        ("betrace.kms.provider", "BETRACE_KMS_PROVIDER"),
        ("kms.cache.private-key-ttl-minutes", "KMS_CACHE_PRIVATE_KEY_TTL_MINUTES"),
        ("kms.data-dir", "KMS_DATA_DIR"),
    ],
)
def test_environment_names(name: str, variable: str) -> None:
    """A variable is the name in upper case with underscores, as MicroProfile Config has it."""
    assert variable == environment_name(name)
    assert {name: "value"} == from_environment({variable: "value"}).values


def test_no_two_settings_share_a_variable() -> None:
    """Every setting can be told from its variable."""
    assert len(NAMES) == len({environment_name(name) for name in NAMES})


def test_other_variables_are_ignored() -> None:
    """Kubernetes injects names of services, and the environment is full of others: none is ours, none is an error."""
    environment = {
        "KMS_SERVICE_HOST": "10.0.0.1",
        "KMS_SERVICE_PORT": "443",
        "KMS_PORT": "tcp://10.0.0.1:443",
        "KMS_PORT_443_TCP_ADDR": "10.0.0.1",
        "BETRACE_KMS_SERVICE_HOST": "10.0.0.1",
        "AWS_KMS_NO_SUCH_NAME": "x",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "x",
        "kms_data_dir": "/lower",
        "PATH": "/bin",
    }
    assert {} == from_environment(environment).values


@pytest.mark.parametrize("name", ["kms.cache.max-sise", "betrace.kms.provder", "aws.kms.key", "kms.", "kms.Data-Dir"])
def test_unknown_names_are_refused_everywhere(tmp_path: Path, name: str) -> None:
    """A name that looks like ours but is none is a typo: each source refuses it in one line that says where it is."""
    folder = mounted(tmp_path / "folder", {name: "1", "kms.data-dir": "data"})
    file = properties(tmp_path, f"kms.data-dir=data\n{name}=1\n")
    reads: list[tuple[Callable[[], Source], str]] = [
        (lambda: from_folder(folder), str(folder)),
        (lambda: from_properties(file), f"{file}, line 2"),
        (lambda: from_command_line({name: "1"}), "command line"),
    ]
    advice = ": write it as kms.data-dir" if name == "kms.Data-Dir" else ""
    for read, where in reads:
        with pytest.raises(StartRefused) as refused:
            read()
        assert f"{name} (from {where}): no such setting{advice}" == str(refused.value)


def test_each_unknown_name_has_a_line() -> None:
    """All typos are told at once, sorted."""
    with pytest.raises(StartRefused) as refused:
        from_command_line({"kms.z": "1", "kms.data-dir": "d", "kms.a": "2"})
    assert [
        "kms.a (from command line): no such setting",
        "kms.z (from command line): no such setting",
    ] == str(refused.value).splitlines()


def test_names_of_others_are_left_to_them(tmp_path: Path) -> None:
    """A backend's file and a shared folder hold names of others; the command line is ours alone."""
    others = {"quarkus.http.port": "8080", "betrace.name": "x", "aws.region": "x", "kmsx": "1", "mykms.a": "1"}
    ours = {"kms.data-dir": "d"}
    file = properties(tmp_path, "\n".join(f"{name}={value}" for name, value in (others | ours).items()))
    assert ours == from_properties(file).values
    assert ours == from_folder(mounted(tmp_path / "folder", others | ours)).values
    with pytest.raises(StartRefused, match=r"^quarkus\.http\.port \(from command line\): no such setting$"):
        from_command_line({"quarkus.http.port": "8080"})


def test_a_mounted_folder(tmp_path: Path) -> None:
    """Each file is a setting; what begins with two dots is Kubernetes' own, folders are skipped."""
    folder = mounted(tmp_path / "config", {"kms.cache.max-size": "5\n", "kms.log.level": "debug"})
    (folder / "..hidden").write_bytes(b"\xff is no text")
    (folder / "tls.key").write_bytes(b"\xff is no text")
    (folder / "folder").mkdir()
    source = from_folder(folder)
    assert (str(folder), {"kms.cache.max-size": "5", "kms.log.level": "debug"}) == (source.name, source.values)


@pytest.mark.parametrize("kind", ["missing", "file", "bytes"])
def test_a_folder_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    """A folder that is not there, is none, or holds no text is refused by name."""
    folder = tmp_path / "config"
    if kind == "file":
        folder.write_text("x")
    elif kind == "bytes":
        mounted(folder, {})
        (folder / "kms.data-dir").write_bytes(b"\xff\xfe")
    with pytest.raises(StartRefused, match=f"^configuration folder {re.escape(str(folder))} cannot be read: "):
        from_folder(folder)


@pytest.mark.parametrize("content", [None, b"kms.data-dir=\\u00"], ids=["missing", "bad escape"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    """A file that is not there, or is no properties file, is refused by name."""
    file = tmp_path / "application.properties"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartRefused, match=f"^configuration file {re.escape(str(file))} cannot be read: "):
        from_properties(file)


def test_a_properties_file_is_javas(tmp_path: Path) -> None:
    """Comments, spaces, colons, continued lines and escapes are read as java.util.Properties reads them."""
    text = "! note\nkms.data-dir : /srv/\\\n   kms\nkms.store.table=gr\\u00fcn\nkms.audit.file = caf\xe9\n"
    values = from_properties(properties(tmp_path, text)).values
    assert {"kms.data-dir": "/srv/kms", "kms.store.table": "grün", "kms.audit.file": "café"} == values


@pytest.mark.parametrize(
    "arn",
    [
        ARN,
        "arn:aws:kms:us-east-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab",
        "arn:aws-cn:kms:us-east-1:123456789012:key/abcd",
        "arn:aws-us-gov:kms:us-east-1:123456789012:key/abcd",
        "arn:aws-iso-b:kms:us-east-1:123456789012:key/abcd",
        "arn:aws-eusc:kms:us-east-1:123456789012:key/abcd",
    ],
)
def test_a_full_arn(arn: str) -> None:
    """The ARN of a key of any partition is taken, and it tells the region."""
    assert (arn, "us-east-1") == (aws(master_key_id=arn).master_key_id, aws(master_key_id=arn).kms_region)
    assert "us-east-1" == aws(master_key_id=arn, region="us-east-1").kms_region


NO_ARNS = [
    "abcd1234-5678-90ab-cdef-1234567890ab",
    "alias/betrace-master-key",
    "arn:aws:kms:us-east-1:123456789012:alias/betrace-master-key",
    "arn:aws:kms:us-east-1:123456789012:key/",
    "arn:aws:kms:us-east-1:123456789012:key/...",
    "arn:aws:kms:us-east-1:123456789012:key/abcd1234-...",
    "arn:aws:kms:us-east-1:12345678901:key/abcd",
    "arn:aws:kms::123456789012:key/abcd",
    "arn:aws:s3:us-east-1:123456789012:key/abcd",
    f"{ARN}/x",
    f"x{ARN}",
]


@pytest.mark.parametrize("key", NO_ARNS)
def test_anything_but_an_arn_needs_an_endpoint(key: str) -> None:
    """An alias, a bare id or a half ARN is refused; with an endpoint, and then a region, an emulator may have it."""
    with pytest.raises(StartRefused, match=r"^aws\.kms\.master-key-id must be a full key ARN .* aws\.kms\.endpoint$"):
        aws(master_key_id=key, region="us-east-1")
    with pytest.raises(StartRefused, match=r"^aws\.kms\.region is missing: give the region of the KMS key$"):
        aws(master_key_id=key, endpoint="http://localhost:4566")
    settings = aws(master_key_id=key, endpoint="http://localhost:4566", region="eu-west-1")
    assert (key, "eu-west-1") == (settings.master_key_id, settings.kms_region)


@pytest.mark.parametrize("endpoint", [{}, {"endpoint": "http://localhost:4566"}], ids=["AWS", "emulator"])
def test_regions_must_agree(endpoint: dict[str, str]) -> None:
    """A region that is not the key's is refused, naming both."""
    with pytest.raises(StartRefused) as refused:
        aws(master_key_id=ARN, region="eu-west-1", **endpoint)
    assert "eu-west-1" in str(refused.value)
    assert "us-east-1" in str(refused.value)
    assert "aws.kms.region" in str(refused.value)


def test_former_master_keys() -> None:
    """Keys for Decrypt only are full ARNs of the same region, because one KMS client calls them all."""
    former = ARN.replace("abcd1234", "beef1234")
    assert (former, ARN) == aws(master_key_id=ARN, decrypt_key_ids=f"{former}, {ARN}").decrypt_key_ids
    for bad in ("alias/former", former.replace("us-east-1", "eu-west-1"), former[:-1] + "/"):
        with pytest.raises(
            StartRefused, match=r"^aws\.kms\.decrypt-key-ids: .* must be a full key ARN of region us-east-1"
        ):
            aws(master_key_id=ARN, decrypt_key_ids=f"{former},{bad}")


def test_aws_needs_a_master_key() -> None:
    """Provider aws without a key is refused; provider local needs none."""
    with pytest.raises(StartRefused, match=r"^aws\.kms\.master-key-id is missing: give the full ARN of the KMS key$"):
        aws()
    assert ("local", "") == (settings_of({}).provider, settings_of({}).kms_region)


@pytest.mark.parametrize(
    "endpoint", ["http://localhost:4566", "https://kms.us-east-1.amazonaws.com", "http://[::1]:1/a"]
)
def test_endpoints(endpoint: str) -> None:
    """An endpoint is a URL of HTTP, with or without TLS."""
    assert endpoint == aws(master_key_id=ARN, endpoint=endpoint).endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["https://user:s3cret@kms.example", "http://s3cret@localhost", "s3cret:4566", "ftp://s3cret", "http://a s3cret"],
)
def test_bad_endpoints_are_refused_unseen(endpoint: str) -> None:
    """An endpoint with user info, or that is no URL, is refused by name, and nothing of it is shown."""
    with pytest.raises(StartRefused) as refused:
        settings_of({"aws.kms.endpoint": endpoint})
    assert re.match(r"aws\.kms\.endpoint \(from test\): ", str(refused.value))
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("betrace.kms.provider", "keepass"),
        ("betrace.kms.provider", "AWS"),
        ("kms.cache.max-size", "0"),
        ("kms.cache.max-size", "-1"),
        ("kms.cache.max-size", "many"),
        ("kms.cache.private-key-ttl-minutes", "1.5"),
        ("kms.rotation.enabled", "perhaps"),
        ("kms.server.max-message-bytes", "1023"),
        ("kms.server.max-message-bytes", "1073741825"),
        ("kms.server.listen", "0.0.0.0:50051"),
        ("kms.server.listen", ","),
        ("kms.store", "redis"),
        ("kms.log.level", "loud"),
        ("kms.log.format", "xml"),
    ],
)
def test_impossible_values_are_refused(name: str, value: str) -> None:
    """A value that cannot be is refused in one line: its name, where it came from, and what it must be."""
    with pytest.raises(StartRefused) as refused:
        settings_of({name: value})
    assert re.fullmatch(rf"{re.escape(name)} \(from test\): \S.*", str(refused.value))


def test_each_impossible_value_has_a_line() -> None:
    """All that is wrong is told at once, each with its own source."""
    with pytest.raises(StartRefused) as refused:
        resolve(
            [Source("one", {"kms.store": "redis"}), Source("two", {"kms.cache.max-size": "0", "kms.store": "sqlite"})]
        )
    assert [("kms.cache.max-size", "two"), ("kms.store", "one")] == sorted(
        re.findall(r"^(\S+) \(from (\w+)\): ", str(refused.value), re.MULTILINE)
    )


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("TRUE", True), ("False", False)])
def test_booleans(text: str, value: bool) -> None:
    """Switches are true or false, in any case."""
    assert value is settings_of({"kms.rotation.enabled": text}).rotation_enabled


def test_lists() -> None:
    """Several values are separated by commas, with or without spaces."""
    assert (ARN, ARN, ARN) == aws(master_key_id=ARN, decrypt_key_ids=f"{ARN}, {ARN},,{ARN} ,").decrypt_key_ids
    listen = settings_of({"kms.server.listen": "[::1]:1, unix:/run/kms.sock"}).listen
    assert ["[::1]:1", "unix:/run/kms.sock"] == [address.text for address in listen]


def test_settings_are_frozen() -> None:
    """Nobody changes a setting of a daemon that runs."""
    with pytest.raises(ValidationError, match="frozen"):
        settings_of({}).cache_max_size = 1


def test_every_setting_is_described() -> None:
    """The table of docs/configuration.md has a line for each setting."""
    assert [] == [name for name, field in Settings.model_fields.items() if not field.description or not field.alias]


def test_described() -> None:
    """The log at start tells every setting under its public name, as it would be written, and its origin."""
    settings, origins = resolve(
        [
            Source("a", {"kms.server.listen": "127.0.0.1:1, unix:/run/kms.sock", "kms.rotation.enabled": "False"}),
            Source("b", {"betrace.kms.provider": "aws", "aws.kms.master-key-id": ARN}),
            Source("c", {"aws.kms.decrypt-key-ids": f"{ARN},{ARN}"}),
        ]
    )
    rows = described(settings, origins)
    assert sorted(NAMES) == [name for name, _, _ in rows]
    told = {name: (value, origin) for name, value, origin in rows}
    assert ("127.0.0.1:1,unix:/run/kms.sock", "a") == told["kms.server.listen"]
    assert ("false", "a") == told["kms.rotation.enabled"]
    assert (f"{ARN},{ARN}", "c") == told["aws.kms.decrypt-key-ids"]
    assert ("", "default") == told["aws.kms.endpoint"]
    assert ("1000", "default") == told["kms.cache.max-size"]


def test_described_can_be_read_back() -> None:
    """What the log tells gives the same settings again."""
    settings, origins = resolve(
        [
            Source("a", {"kms.server.listen": "127.0.0.1:1,[::1]:2", "kms.data-dir": "d"}),
            Source("b", {"betrace.kms.provider": "aws", "aws.kms.master-key-id": ARN}),
        ]
    )
    told = {name: value for name, value, _ in described(settings, origins)}
    assert settings == settings_of(told)


PRIMARY = "arn:aws:kms:us-east-1:123456789012:key/mrk-0123456789abcdef0123456789abcdef"
REPLICA = PRIMARY.replace("us-east-1", "eu-west-1")


def of_aws(**values: str) -> Settings:
    """Return settings of provider aws with a multi-Region key."""
    names = {environment_name(name).lower(): name for name in NAMES}
    given = {"betrace.kms.provider": "aws", "aws.kms.master-key-id": PRIMARY}
    return settings_of(given | {names[name]: value for name, value in values.items()})


def test_replicas_are_of_the_master_key() -> None:
    """The same account and mrk- id in another region; with an endpoint each needs one of its own."""
    assert of_aws(aws_kms_replica_key_ids=REPLICA).replica_key_ids == (REPLICA,)
    both = {"aws_kms_endpoint": "http://127.0.0.1:1", "aws_kms_replica_endpoints": "http://127.0.0.1:2"}
    assert of_aws(aws_kms_replica_key_ids=REPLICA, **both).replica_endpoints == ("http://127.0.0.1:2",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aws_kms_replica_key_ids": PRIMARY}, "must be the full ARN of a replica"),
        ({"aws_kms_replica_key_ids": REPLICA.replace("mrk-0", "mrk-1")}, "must be the full ARN of a replica"),
        ({"aws_kms_replica_key_ids": REPLICA.replace("1234", "4321")}, "must be the full ARN of a replica"),
        ({"aws_kms_replica_key_ids": "mrk-0123456789abcdef0123456789abcdef"}, "must be the full ARN of a replica"),
        ({"aws_kms_replica_key_ids": REPLICA, "aws_kms_endpoint": "http://127.0.0.1:1"}, "one endpoint for each"),
        ({"aws_kms_replica_key_ids": REPLICA, "aws_kms_replica_endpoints": "http://x"}, "one endpoint for each"),
        ({"kms_store": "dynamodb"}, "kms.store.table is missing"),
        ({"kms_store_table": "a b"}, "is not of the form"),
        ({"kms_rotation_check_cron": "0 2 * * *"}, "6 or 7 fields"),
    ],
)
def test_settings_of_several_regions_and_pods_are_checked(values: dict[str, str], message: str) -> None:
    """Each refusal says what to mend."""
    with pytest.raises(StartRefused, match=message):
        of_aws(**values)


def test_dynamodb_needs_another_provider_than_local() -> None:
    """With provider local, other pods could not unwrap."""
    with pytest.raises(StartRefused, match=r"betrace\.kms\.provider is local"):
        settings_of({"kms.store": "dynamodb", "kms.store.table": "keys"})
    assert of_aws(kms_store="dynamodb", kms_store_table="keys").dynamodb_region == "us-east-1"
