"""No source of settings is dropped without a word: what is no properties file, and names that are nearly ours."""

from collections.abc import Callable
from pathlib import Path

import pytest
from betrace_kms_server.cli.settings_options import SettingsOptions
from betrace_kms_server.config.sources import (
    Source,
    environment_name,
    from_command_line,
    from_environment,
    from_folder,
    from_properties,
    resolve,
    unused_variables,
)
from betrace_kms_server.core.errors import StartRefused

ARN = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
AWS = f"betrace.kms.provider=aws\naws.kms.master-key-id={ARN}\n"
BACKEND = "# of the backend\nquarkus.http.port=8080\n%dev.quarkus.http.port=8081\nkms-client.url=http://x\n"
JSON = '{"betrace.kms.provider": "aws", "kms.cache.max-size": 5}'
NESTED = "betrace:\n  kms:\n    provider: aws\n"


def refusal_of(read: Callable[[], object]) -> str:
    with pytest.raises(StartRefused) as refused:
        read()
    return str(refused.value)


def written(tmp_path: Path, data: bytes | str) -> Path:
    file = tmp_path / "application.properties"
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path, end: str) -> None:
    """A file that an editor saved as UTF-8 with BOM is the same configuration as without."""
    file = written(tmp_path, b"\xef\xbb\xbf" + AWS.replace("\n", end).encode())
    settings, origins = resolve([from_properties(file)])
    assert ("aws", ARN) == (settings.provider, settings.master_key_id)
    assert f"{file}, line 2" == origins["aws.kms.master-key-id"]


def test_utf8_is_read_as_utf8(tmp_path: Path) -> None:
    """Quarkus reads UTF-8: a path with an umlaut is that path."""
    assert {"kms.data-dir": "/srv/schlüssel"} == from_properties(
        written(tmp_path, "kms.data-dir=/srv/schlüssel")
    ).values


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (AWS.encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + AWS.encode("utf-16-be"), "UTF-16"),
        (AWS.encode("utf-16-le"), "line 1 holds a zero byte, so it is UTF-16"),
        (AWS.encode("utf-16-be"), "line 1 holds a zero byte, so it is UTF-16"),
        (AWS.encode("utf-32"), "UTF-16 or UTF-32"),
        (AWS + "kms.log.level=\0debug\n", "line 3 holds a zero byte"),
        (JSON, "it is JSON"),
        ("\n  " + JSON, "it is JSON"),
        (f"[{JSON}]", "it is JSON"),
        ("<properties><entry key='betrace.kms.provider'>aws</entry></properties>", "it is XML"),
        (AWS + "[betrace.kms]\nprovider=aws\n", "line 3 is a section"),
        ("[kms]\ncache.max-size=5\n", "line 1 is a section"),
        (b"#" * (1024 * 1024 + 1), "longer than 1,048,576 bytes"),
    ],
)
def test_what_is_no_properties_file_is_refused(tmp_path: Path, data: bytes | str, reason: str) -> None:
    """Each of these is a properties file by the letter, without any setting of ours."""
    refusal = refusal_of(lambda: from_properties(written(tmp_path, data)))
    assert refusal.startswith(f"configuration file {tmp_path}")
    assert reason in refusal


@pytest.mark.parametrize("text", [BACKEND, "# all commented out\n", "provider=aws\n", "export X=aws\n", "aws\n"])
def test_a_file_that_yields_nothing_is_refused(tmp_path: Path, text: str) -> None:
    """A file was named, so it was meant to hold settings."""
    assert "holds no setting: write NAME=VALUE" in refusal_of(lambda: from_properties(written(tmp_path, text)))


@pytest.mark.parametrize("text", ["kind: x\nspec:\n  provider: aws\n", "---\nprovider: aws\n", "- provider: aws\n"])
def test_yaml_is_named(tmp_path: Path, text: str) -> None:
    """YAML is a properties file with other names: the refusal says what it looks like."""
    assert "it looks like YAML" in refusal_of(lambda: from_properties(written(tmp_path, text)))


@pytest.mark.parametrize("text", ["", "\n\n", " \t\n", "\ufeff"])
def test_an_empty_file_is_no_settings(tmp_path: Path, text: str) -> None:
    """Nothing is in it, so nothing is dropped."""
    assert {} == from_properties(written(tmp_path, text)).values


NEARLY = [
    ("Betrace.kms.provider", "betrace.kms.provider"),
    ("BETRACE.KMS.PROVIDER", "betrace.kms.provider"),
    ("%prod.betrace.kms.provider", "betrace.kms.provider"),
    ("%dev,test.kms.log.level", "kms.log.level"),
    ("%Prod.Betrace.Kms.Provider", "betrace.kms.provider"),
    ("betrace.kms-provider", "betrace.kms.provider"),
    ("betrace_kms_provider", "betrace.kms.provider"),
    ("BETRACE_KMS_PROVIDER", "betrace.kms.provider"),
    ("betrace-kms-provider", "betrace.kms.provider"),
    ("betraceKmsProvider", "betrace.kms.provider"),
    ("kms.cache.maxSize", "kms.cache.max-size"),
    ("kms_cache_max_size", "kms.cache.max-size"),
    ("kms.cache.max.size", "kms.cache.max-size"),
    ("aws.kms.masterKeyId", "aws.kms.master-key-id"),
    ('"betrace.kms.provider"', "betrace.kms.provider"),
    ("\ufeffbetrace.kms.provider", "betrace.kms.provider"),
    ("betrace.kms.provider\u00a0", "betrace.kms.provider"),
    (".kms.data-dir", "kms.data-dir"),
]


@pytest.mark.parametrize(("name", "meant"), NEARLY)
def test_a_name_that_is_nearly_ours_is_refused_with_its_line(tmp_path: Path, name: str, meant: str) -> None:
    """Case, separators, quotes and profiles: the refusal has the line, and the name as it must be written."""
    file = written(tmp_path, f"\ufeff{BACKEND}\\\n\n{AWS}{name}=aws\n")
    assert refusal_of(lambda: from_properties(file)) == (
        f"{name} (from {file}, line 9): no such setting: write it as {meant}"
    )


@pytest.mark.parametrize(
    "name", ["%prod.kms.cache.max-sise", "Kms.cache", "aws_kms_key_id", "betrace-kms.x", "AWS_KMS_KEY"]
)
def test_a_typo_is_refused_in_any_spelling_of_the_prefix(tmp_path: Path, name: str) -> None:
    """A wrong prefix does not make a wrong name the backend's."""
    file = written(tmp_path, f"{AWS}{name}=1\n")
    assert f"{name} (from {file}, line 3): no such setting" == refusal_of(lambda: from_properties(file))


def test_nested_yaml_beside_settings_is_refused(tmp_path: Path) -> None:
    """One flat name does not hide the nested ones."""
    file = written(tmp_path, f"kms.cache.max-size: 5\n{NESTED}")
    assert f"betrace (from {file}, line 2): no such setting" in refusal_of(lambda: from_properties(file))


@pytest.mark.parametrize("first", ["kms.data-dir=/srv/kms\\", "quarkus.log=C:\\\\kms\\\\\\", "quarkus.a=b\\\n  c\\"])
def test_a_continued_line_does_not_swallow_a_setting(tmp_path: Path, first: str) -> None:
    """A backslash at the end of a line makes the next one a part of the value."""
    file = written(tmp_path, f"kms.log.level=info\n{first}\n  betrace.kms.provider = aws\n")
    refusal = refusal_of(lambda: from_properties(file))
    assert refusal.startswith(f"betrace.kms.provider (from {file}, line 2): the backslash before it")


def test_continued_values_are_read(tmp_path: Path) -> None:
    """A list over several lines is one value, and the lines after it keep their numbers."""
    other = ARN.replace("abcd", "beef")
    file = written(tmp_path, f"aws.kms.decrypt-key-ids={ARN},\\\n  {other}\n{AWS}")
    source = from_properties(file)
    assert f"{ARN},{other}" == source.values["aws.kms.decrypt-key-ids"]
    assert (1, 3) == (source.lines["aws.kms.decrypt-key-ids"], source.lines["betrace.kms.provider"])


def test_two_lines_must_agree(tmp_path: Path) -> None:
    """A second line with another value is refused with both lines; the same value twice is harmless."""
    file = written(tmp_path, "kms.log.level=info\nkms.log.level=info\nkms.log.level=debug\n")
    refusal = refusal_of(lambda: from_properties(file))
    assert f"kms.log.level (from {file}, line 1): line 3 gives another value: remove one of them" in refusal
    assert {"kms.log.level": "info"} == from_properties(written(tmp_path, "kms.log.level=info\n" * 2)).values


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    """--config names a file."""
    assert "cannot be read: " in refusal_of(lambda: from_properties(tmp_path))


def test_a_device_without_end_is_refused() -> None:
    """Reading is bounded."""
    assert "longer than" in refusal_of(lambda: from_properties(Path("/dev/zero")))


# Folders


@pytest.mark.parametrize(("name", "meant"), [pair for pair in NEARLY if not pair[0].startswith((".", "\ufeff"))])
def test_a_file_of_a_folder_that_is_nearly_ours_is_refused(tmp_path: Path, name: str, meant: str) -> None:
    """A ConfigMap's keys are names as much as those of a file."""
    (tmp_path / name).write_text("aws")
    assert refusal_of(lambda: from_folder(tmp_path)) == (
        f"{name} (from {tmp_path}): no such setting: write it as {meant}"
    )


def test_a_mounted_value_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Byte order mark and line end are no part of the value; UTF-16 is refused."""
    (tmp_path / "betrace.kms.provider").write_bytes(b"\xef\xbb\xbfaws\r\n")
    assert {"betrace.kms.provider": "aws"} == from_folder(tmp_path).values
    (tmp_path / "betrace.kms.provider").write_bytes("aws".encode("utf-16"))
    assert "UTF-16" in refusal_of(lambda: from_folder(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_a_setting_of_a_folder_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A mount that failed leaves a folder or a link to nothing: that is not an unset value."""
    path = tmp_path / "aws.kms.region"
    path.mkdir() if kind == "folder" else path.symlink_to("nowhere")
    assert f"configuration folder {tmp_path} cannot be read: " in refusal_of(lambda: from_folder(tmp_path))


@pytest.mark.parametrize("name", ["application.properties", "provider", "application.yaml"])
def test_a_folder_that_yields_nothing_is_refused(tmp_path: Path, name: str) -> None:
    """A properties file in a mounted folder is not read, so the folder must not look as if it were."""
    (tmp_path / name).write_text(AWS)
    assert f"holds no setting, but {name}" in refusal_of(lambda: from_folder(tmp_path))


def test_an_empty_folder_is_no_settings(tmp_path: Path) -> None:
    """An optional ConfigMap that is not there is mounted as an empty folder."""
    (tmp_path / "..data").mkdir()
    assert {} == from_folder(tmp_path).values


# Environment and command line


def test_variables_that_look_like_settings() -> None:
    """Variables that are nearly ours, or have our prefix, are listed; those of Kubernetes and of others are not."""
    environment = {
        "AWS_KMS_MASTERKEY_ID": "AWS_KMS_MASTER_KEY_ID",
        "aws_kms_region": "AWS_KMS_REGION",
        "aws.kms.endpoint": "AWS_KMS_ENDPOINT",
        "KMS_DATADIR": "KMS_DATA_DIR",
        "BETRACE_KMS_PROVDER": None,
        "AWS_KMS_KEY_ID": None,
        "KMS_CACHE_MAX_SISE": None,
    }
    others = (
        "KMS_SERVICE_HOST KMS_SERVICE_PORT KMS_SERVICE_PORT_GRPC KMS_PORT KMS_PORT_443_TCP KMS_PORT_443_TCP_ADDR"
        " BETRACE_KMS_SERVICE_HOST KMS_CONFIG_FILE KMS_CONFIG_DIR KMS_DATA_DIR AWS_REGION PATH"
    ).split()
    found = unused_variables(dict.fromkeys([*environment, *others], "x"))
    assert environment == dict(found)
    assert {} == from_environment(dict.fromkeys(environment, "x")).values


def test_set_twice_must_agree() -> None:
    """The command line does not choose between two values."""
    options = SettingsOptions(None, None, (), ("kms.log.level=info", "kms.log.level=debug"))
    assert "kms.log.level: it is given twice" in refusal_of(options.resolve)
    options = SettingsOptions("a", None, (), ("kms.data-dir=b",))
    assert "kms.data-dir is given by --set and by its own option" in refusal_of(options.resolve)
    assert Path("a") == SettingsOptions("a", None, (), ("kms.data-dir=a",)).resolve()[0].data_dir


# aws.kms.* beside provider local


@pytest.mark.parametrize("provider", ["", "betrace.kms.provider=local\n"], ids=["default", "local"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("aws.kms.master-key-id", ARN),
        ("aws.kms.region", "us-east-1"),
        ("aws.kms.endpoint", "http://localhost:4566"),
        ("aws.kms.call-timeout-ms", "1000"),
    ],
)
def test_settings_of_aws_beside_provider_local_are_refused(
    tmp_path: Path, provider: str, name: str, value: str
) -> None:
    """Who gives a KMS key does not mean the local one, wherever it is given; the refusal says where."""
    file = written(tmp_path, f"quarkus.a=b\n{provider}{name}={value}\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text(value)
    local = Source("x", {"betrace.kms.provider": "local"} if provider else {})
    for source, where in (
        (from_properties(file), f"{file}, line {3 if provider else 2}"),
        (from_folder(folder), str(folder)),
        (from_command_line({name: value}), "command line"),
        (from_environment({environment_name(name): value}), "environment"),
    ):
        refusal = refusal_of(lambda source=source: resolve([source, local]))  # type: ignore[misc]
        assert refusal.startswith(f"{name} (from {where}): betrace.kms.provider is local")
        assert refusal.endswith(f"set betrace.kms.provider=aws, or remove {name}")
    assert (
        "aws"
        == resolve([Source("y", {"betrace.kms.provider": "aws", "aws.kms.master-key-id": ARN}), local])[0].provider
    )
