"""Deploy files and operator documents say what the code does."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import betrace_kms_server
import pytest
from betrace_kms_client import credentials
from betrace_kms_client.channel import OPTIONS
from betrace_kms_server.cli.serve import serve
from betrace_kms_server.config import sources as config
from betrace_kms_server.core.errors import KmsError
from betrace_kms_server.rpc.health import KEY_MANAGEMENT
from betrace_kms_server.rpc.status import STATUS
from pydantic.fields import FieldInfo

from tests.image.dockerfile import DOCKERFILE, ROOT, admitted, stages

DOCS = ROOT / "docs"
DOCUMENTS = (
    *sorted(DOCS.glob("*.md")),
    *sorted(ROOT.glob("deploy/*/README.md")),
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
)
DATA_DIR = "/var/lib/betrace-kms"

OURS = re.compile(r"(?<![\w./-])(?:betrace\.kms|aws\.kms|kms)\.[a-z][a-z0-9.-]*[a-z0-9]")
OUR_VARIABLE = re.compile(r"\b(?:BETRACE_KMS|AWS_KMS|KMS)_[A-Z_]*[A-Z]\b")

VARIABLES = {
    *(config.environment_name(name) for name in config.NAMES),
    *(option.envvar for option in serve.params if isinstance(getattr(option, "envvar", None), str)),
    *credentials.VARIABLES,
    "BETRACE_KMS_ADDR",
}
"""What the daemon and its clients read from the environment."""
NOT_OURS = {"PATH"}


# Image: what `make image-check` cannot see when it runs it

BUILD, PROBE_STAGE, IMAGE = stages(DOCKERFILE.read_text("utf-8"))


def test_image_sets_variables_that_the_daemon_reads() -> None:
    """A misspelt variable in the image would be ignored in silence."""
    variables = IMAGE.values("ENV")
    assert set() == set(variables) - VARIABLES - NOT_OURS
    assert DATA_DIR == variables["KMS_DATA_DIR"]


def test_image_keeps_keys_on_a_volume_of_its_user() -> None:
    """The data folder is a volume, and belongs to the numeric user that the image runs as."""
    user, group = IMAGE.last("USER").split(":")
    assert DATA_DIR == IMAGE.last("VOLUME")
    assert "0" not in (user, group)
    assert f"install -d -o {user} -g {group} -m 0700 {DATA_DIR}" == IMAGE.last("RUN")


def test_image_tells_what_it_is() -> None:
    """Its labels are those of the package, and `make release` changes its version too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in IMAGE.values("LABEL").items()}
    names = {"title": "name", "description": "description", "version": "version", "licenses": "license"}
    assert {label: project["project"][name] for label, name in names.items()} | {"revision": "${REVISION}"} == labels
    assert f"-service={KEY_MANAGEMENT} " in IMAGE.last("HEALTHCHECK")
    (bumped,) = (each for each in project["tool"]["bumpversion"]["files"] if "Dockerfile" in each["filename"])
    assert DOCKERFILE.read_text("utf-8").count(bumped["search"].format(current_version=labels["version"])) == 1


def test_base_images_can_be_pinned() -> None:
    """Each base is an argument, and the guide gives every argument that there is."""
    arguments = set(re.findall(r"^ARG (\w+)=", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE))
    assert re.findall(r"^FROM (?:\$\{(\w+)\})?", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE) == [
        "PYTHON_IMAGE",
        "GO_IMAGE",
        "PYTHON_IMAGE",
    ]
    guide = (DOCS / "image.md").read_text("utf-8")
    assert arguments == set(re.findall(r"--build-arg (\w+)=", guide))
    assert [] == [stage.image for stage in (BUILD, PROBE_STAGE, IMAGE) if stage.image not in guide]


def test_image_has_the_probe_that_is_tested() -> None:
    """What the manifests run is built at the version of the Makefile, with which the tests run their commands."""
    [module] = re.findall(r"^HEALTH_PROBE := (\S+)$", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert [("RUN", f"CGO_ENABLED=0 go install {module}")] == PROBE_STAGE.instructions
    assert ("COPY", "--from=probe /go/bin/grpc-health-probe /usr/local/bin/grpc_health_probe") in IMAGE.instructions


def test_image_installs_pinned_packages_by_hash_and_nothing_else() -> None:
    """Every file of pins is installed with its hashes, and nothing is resolved; the package is a wheel of this tree."""
    lines = (line.strip() for name, rest in BUILD.instructions if name == "RUN" for line in rest.split("&&"))
    installs = [line for line in lines if " install " in line]
    assert [True] * 3 == ["--no-deps" in line for line in installs]
    for line, file in zip(installs, ("build", "server"), strict=False):
        assert ["--require-hashes", "-r", f"requirements/{file}.txt"] == line.split()[-3:]
    assert ["--no-index", "/dist/*.whl"] == installs[-1].split()[-2:]


def test_builder_gets_what_the_image_copies_and_nothing_else() -> None:
    """The ignore file lets through exactly the sources of COPY, and each of them exists, or make sbom writes it."""
    copies = [
        rest.split()[:-1]
        for stage in (BUILD, IMAGE)
        for name, rest in stage.instructions
        if name == "COPY" and not rest.startswith("--from")
    ]
    copied = {source.rstrip("/") for sources in copies for source in sources}
    assert copied == set(admitted(Path(f"{DOCKERFILE}.dockerignore").read_text("utf-8")))
    (sbom,) = re.findall(r"^SBOM \?= (\S+)$", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert [] == [source for source in copied - {sbom} if not (ROOT / source).exists()]


# Documents


def values_of(field: FieldInfo) -> str:
    """Return what a setting may be: its bounds, or the values that it is one of."""
    bounds = {key: getattr(part, key) for part in field.metadata for key in ("ge", "le") if hasattr(part, key)}
    if bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    if field.annotation is bool:
        return "`true`, `false`"
    return ", ".join(f"`{value}`" for value in get_args(field.annotation) if isinstance(value, str))


def setting_rows() -> Sequence[str]:
    """Return the rows of the table in configuration.md."""
    rows = []
    for name, value, _ in config.described(*config.resolve([])):
        default = f"`{value}`" if value else ""
        field = config.Settings.model_fields[config.NAMES[name]]
        rows.append(f"| `{name}` | {default} | {values_of(field)} | {field.description} |")
    return rows


def test_configuration_table_is_the_code() -> None:
    """Each setting has its row, with default and meaning, and no other rows are there."""
    text = (DOCS / "configuration.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    expected = setting_rows()
    assert expected == rows, "the table of docs/configuration.md should be:\n" + "\n".join(expected)


def leaves(error: type[KmsError] = KmsError) -> Sequence[type[KmsError]]:
    """Return our errors that are raised, which are those without one below."""
    below = [kind for kind in error.__subclasses__() if kind.__module__ == KmsError.__module__]
    return [leaf for kind in below for leaf in leaves(kind)] if below else [error]


def sections() -> Mapping[str, str]:
    """Return the text under each heading of the third level in troubleshooting.md."""
    text = (DOCS / "troubleshooting.md").read_text("utf-8")
    parts = re.split(r"^#{2,3} (.*)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("error", leaves(), ids=lambda error: error.reason)
def test_every_reason_is_in_troubleshooting(error: type[KmsError]) -> None:
    """An operator who meets a reason finds its heading, and under it the status that it comes with."""
    section = sections()[error.reason]
    assert section.strip().startswith(f"`{STATUS[error].name}`")


def test_troubleshooting_has_no_reason_that_is_gone() -> None:
    """A heading that looks like a reason is one."""
    headings = {heading for heading in sections() if re.fullmatch(r"[A-Z_]+", heading)}
    assert {error.reason for error in leaves()} | {"INTERNAL"} == headings


def refusals() -> Iterator[tuple[str, Sequence[str]]]:
    """Yield (place, fixed parts) of every message that keeps the daemon from starting.

    Those are the texts of StartRefused, of a lock that is held, and of the settings' validators; the fixed parts are
    those of the condition, which ends at the first colon, or else those of what to do.
    """
    for file in sorted(Path(betrace_kms_server.__file__).parent.rglob("*.py")):
        validators = ["ValueError"] if file.name in ("settings.py", "sockets.py") else []
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("StartRefused", "exclusive", *validators):
                condition, _, rest = fixed_text(node.args[-1]).partition(":")
                for text in (condition, rest):
                    parts = [part.strip() for part in re.split(r"[\0(),]", text) if len(part.strip()) >= 8]
                    if parts:
                        yield f"{file.name}:{node.lineno}", parts
                        break


def fixed_text(node: ast.expr) -> str:
    """Return a message with a zero character for each value that is put into it."""
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            return "".join(str(value.value) if isinstance(value, ast.Constant) else "\0" for value in part.values)
        if isinstance(part, ast.Constant) and part is node:
            return str(part.value)
    return ""


def test_every_refusal_to_start_is_in_troubleshooting() -> None:
    """An operator who searches for what the daemon said finds it."""
    text = " ".join((DOCS / "troubleshooting.md").read_text("utf-8").split())
    found = list(refusals())
    assert len(found) > 30
    assert [] == [(place, part) for place, parts in found for part in parts if part not in text]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_settings_that_exist(document: Path) -> None:
    """A name or a variable of ours in a document is one that the code knows."""
    text = document.read_text("utf-8")
    others = {"kms.betrace.dev", "betrace.kms.v1", "KMS_SERVICE_HOST", *(error.reason for error in leaves())}
    assert set() == {*OURS.findall(text), *OUR_VARIABLE.findall(text)} - {*config.NAMES} - VARIABLES - others


def test_other_clients_retry_as_ours_do() -> None:
    """The service config for other languages has our attempts and pauses, and asks gRPC for the wait that ours do."""
    (text,) = re.findall(
        r"^```json\n(.*?)^```", (DOCS / "clients.md").read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    (theirs,), (ours,) = (
        json.loads(text)["methodConfig"],
        json.loads(str(dict(OPTIONS)["grpc.service_config"]))["methodConfig"],
    )
    assert theirs.pop("waitForReady")
    for policy in (theirs["retryPolicy"], ours["retryPolicy"]):
        for name in ("initialBackoff", "maxBackoff"):
            policy[name] = float(policy[name].removesuffix("s"))
    assert ours == theirs


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_documents_lead_somewhere(document: Path) -> None:
    """A relative link has its file, and its anchor a heading there."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text("utf-8")):
        file = document.parent / target if target else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_index_has_each_document() -> None:
    """Whoever looks for a task finds its document in docs/README.md."""
    linked = set(re.findall(r"\]\(([^)#]+)\)", (DOCS / "README.md").read_text("utf-8")))
    assert set() == {document.name for document in DOCS.glob("*.md")} - linked - {"README.md"}
