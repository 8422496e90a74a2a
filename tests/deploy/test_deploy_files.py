"""The files of deploy/ against the schemas and linters of their formats, and against what they promise."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML to read the files")

COMPOSE_FILES = ("docker-compose.yml", "deploy/docker-compose.tls.yml")


def program(name: str) -> str:
    """A linter beside the interpreter or on the PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def passes(*command: str | Path) -> None:
    """Run a linter, and show what it says if it is not content."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    """docker-compose.yml."""
    document: dict[str, Any] = yaml.safe_load((repository / "docker-compose.yml").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_compose_files_fit_the_compose_specification(repository: Path, file: str) -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("needs the package check-jsonschema, which brings the schema along")
    passes(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", repository / file)


def test_the_dockerfile_passes_hadolint(repository: Path) -> None:
    passes(program("hadolint"), repository / "deploy" / "Dockerfile")


def test_kubernetes_manifests_fit_the_schemas(repository: Path) -> None:
    manifest = repository / "deploy" / "kubernetes" / "osteopan.yaml"
    passes(program("kubernetes-validate"), "--strict", manifest)


def test_the_scalers_manifest_names_what_the_other_has(repository: Path) -> None:
    folder = repository / "deploy" / "kubernetes"
    deployments = [
        document["metadata"]["name"]
        for document in yaml.safe_load_all((folder / "osteopan.yaml").read_text(encoding="utf-8"))
        if document["kind"] == "Deployment"
    ]
    authentication, scaler = yaml.safe_load_all((folder / "keda.yaml").read_text(encoding="utf-8"))
    assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
    (trigger,) = scaler["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert trigger["metadata"]["listName"] == "osteopan:queued"


def test_the_systemd_unit_is_sound(repository: Path) -> None:
    unit = repository / "deploy" / "systemd" / "osteopan-worker@.service"
    passes(program("systemd-analyze"), "verify", "--man=no", unit)


def test_every_container_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].split(":")[0] not in ("", "0", "root"), name
        assert not service.get("privileged"), name
        assert service["logging"]["options"]["max-size"], name


def test_nothing_is_published_but_flower_on_loopback(compose: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert ports == {"flower": ["127.0.0.1:${OSTEOPAN_FLOWER_PORT:-5555}:5555"]}
    assert compose["networks"]["inside"]["internal"] is True
    others = {name: service["networks"] for name, service in compose["services"].items() if name != "flower"}
    assert set(map(tuple, others.values())) == {("inside",)}


def test_each_gpu_has_a_container_of_its_own(compose: dict[str, Any]) -> None:
    devices = [
        device["device_ids"]
        for service in compose["services"].values()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    ]
    assert devices == [["0"], ["1"]]


def test_pictures_come_in_read_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            if volume["source"] in ("input", "models"):
                assert volume["read_only"] is True, name
    assert "ro" in compose["volumes"]["input"]["driver_opts"]["o"].split(",")


def test_no_container_gets_anothers_secrets(compose: dict[str, Any]) -> None:
    secrets = {name: set(service["secrets"]) for name, service in compose["services"].items()}
    workers = {name for name in secrets if name.startswith("worker-")}
    assert {name: secrets[name] for name in workers} == {name: {"worker.url"} for name in workers}
    assert secrets["producer"] == {"producer.url"}
    assert secrets["flower"] == {"monitor.url", "flower.auth"}
    assert secrets["redis"] == {"users.acl", "operator.pass"}


def test_no_secret_stands_in_the_environment(compose: dict[str, Any]) -> None:
    variables = {name for service in compose["services"].values() for name in service.get("environment", {})}
    assert "OSTEOPAN_REDIS_URL" not in variables
    assert not [name for name in variables if "PASSWORD" in name]


def test_the_example_environment_has_every_variable_that_is_to_be_set(repository: Path) -> None:
    used = set(re.findall(r"\$\{(\w+):\?", (repository / "docker-compose.yml").read_text(encoding="utf-8")))
    example = (repository / ".env.example").read_text(encoding="utf-8")
    set_there = {line.split("=")[0] for line in example.splitlines() if line and not line.startswith("#")}
    assert used
    assert used <= set_there


def test_the_secrets_of_the_compose_files_are_those_that_the_script_makes(
    repository: Path, installation: Any, certificates: Path
) -> None:
    made = {path.name for path in installation.secrets.iterdir()}
    made |= {f"tls/{path.name}" for path in certificates.iterdir()}
    for file in COMPOSE_FILES:
        secrets = yaml.safe_load((repository / file).read_text(encoding="utf-8"))["secrets"]
        wanted = {secret["file"].split("}/", 1)[1] for secret in secrets.values()}
        assert wanted <= made, file


def test_the_dockerfile_copies_what_is_packaged_and_what_the_builder_gets(repository: Path) -> None:
    dockerfile = (repository / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    sent = re.findall(
        r"^!(.+)$", (repository / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8"), re.MULTILINE
    )
    packages = re.search(r"^packages = (\[.+\])$", (repository / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    assert copied == set(sent)
    assert set(yaml.safe_load(packages[1])) <= copied
    assert all((repository / name).exists() for name in copied)


def test_no_file_names_a_package_registry_or_holds_a_secret(repository: Path) -> None:
    files = [repository / name for name in ("docker-compose.yml", ".env.example")]
    files += [path for path in (repository / "deploy").rglob("*") if path.is_file() and "secrets" not in path.parts]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"index-url[= ]+[\"']?https?:|#[0-9a-f]{64}|rediss?://\w+:[^{@\s]{8,}@", text), path


def test_every_alert_is_in_the_handbook(repository: Path) -> None:
    alerts = re.findall(r"alert: (\w+)", (repository / "deploy" / "alerts.yml").read_text(encoding="utf-8"))
    handbook = (repository / "docs" / "operations.md").read_text(encoding="utf-8")
    assert alerts
    assert [alert for alert in alerts if f"`{alert}`" not in handbook] == []


def test_every_command_in_the_handbook_exists(repository: Path) -> None:
    handbook = (repository / "docs" / "operations.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", handbook, re.DOTALL))
    commands = set(re.findall(r"\b(producer|worker|osteopan) ((?:dead )?[a-z]+)\b", blocks))
    assert ("producer", "dead list") in commands
    modules = {"producer": "producer", "worker": "worker", "osteopan": "local"}
    for role, verbs in sorted(commands):
        passes(sys.executable, "-m", modules[role], *verbs.split(), "--help")
    for script in set(re.findall(r"\bdeploy/[\w./@-]+\.(?:py|sh|yml|yaml|service|conf)\b", handbook)):
        assert (repository / script).is_file(), script
    for option in set(re.findall(r"make_secrets\.py.*?(--[a-z][a-z0-9.-]*)", blocks)):
        assert option in (repository / "deploy" / "make_secrets.py").read_text(encoding="utf-8"), option
