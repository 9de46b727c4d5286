"""What docker/ and compose.yaml say is well-formed, and true of the code: settings, ports, routes, metrics."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

import trainer.telemetry  # noqa: F401  # its metrics join the registry
from service.settings import PREFIX, Settings
from tests.conftest import REQUIRE_SERVICES

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
DASHBOARD = DOCKER / "grafana" / "dashboards" / "adaptide.json"
ALERTS = DOCKER / "prometheus" / "alerts.yml"
OURS = re.compile(r"\badaptide_[a-z_]+")


def run(tool: str, *arguments: object, cheap: bool = True, **environment: str) -> str:
    """A linter over the files; skips where it is not installed. cheap: CI installs it, so there it must be."""
    beside = Path(sys.executable).with_name(tool)
    found = str(beside) if beside.exists() else shutil.which(tool)
    if found is None:
        if cheap and REQUIRE_SERVICES:
            pytest.fail(f"{tool} is not installed")
        pytest.skip(f"{tool} is not installed")
    line = [found, *map(str, arguments)]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment, cwd=ROOT
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def compose() -> dict[str, Any]:
    (found,) = documents(ROOT / "compose.yaml")
    merged: dict[str, Any] = found
    return merged


# The forms


def test_the_dockerfile_is_linted() -> None:
    run("hadolint", DOCKER / "Dockerfile")


def test_compose_follows_its_specification() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml")


def test_the_balancer_takes_its_configuration() -> None:
    run("haproxy", "-c", "-f", DOCKER / "haproxy.cfg")


def test_prometheus_takes_its_configuration_and_the_alerts() -> None:
    run("promtool", "check", "config", DOCKER / "prometheus" / "prometheus.yml", cheap=False)


def test_alerts_fire_for_what_they_are_about(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    run("promtool", "test", "rules", tmp_path / "alerts_test.yml", cheap=False)


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "1m") for query in dashboard_queries()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    written = tmp_path / "rules.yml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run("promtool", "check", "rules", written, cheap=False)


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if path.name != "kustomization.yaml"], ids=lambda p: p.name
)
def test_kubernetes_manifests_follow_their_schemas(path: Path) -> None:
    run("kubernetes-validate", "--strict", "--quiet", path)


def test_kustomize_renders_every_manifest_but_the_example_of_a_secret() -> None:
    listed = set(documents(DOCKER / "kubernetes" / "kustomization.yaml")[0]["resources"])
    assert listed == {path.name for path in MANIFESTS} - {"kustomization.yaml", "secret.example.yaml"}
    rendered = list(yaml.safe_load_all(run("kubectl", "kustomize", DOCKER / "kubernetes", cheap=False)))
    assert {"Deployment", "Job", "PodDisruptionBudget", "HorizontalPodAutoscaler"} <= {
        part["kind"] for part in rendered
    }
    for part in rendered:
        assert part["kind"] == "Namespace" or part["metadata"]["namespace"] == "adaptide"


# What they say of the code


def settings_named() -> Iterator[tuple[str, str]]:
    """Every ADAPTIDE_ variable that a container is given, with where."""
    for name, service in compose()["services"].items():
        for variable in service.get("environment", {}):
            yield f"compose.yaml, {name}", variable
    for variable in re.findall(r"^(?:ENV)?\s+(ADAPTIDE_\w+)=", (DOCKER / "Dockerfile").read_text(), re.MULTILINE):
        yield "Dockerfile", variable
    for path in MANIFESTS:
        for variable in re.findall(r"^\s+(?:- )?(ADAPTIDE_\w+)[=:]", path.read_text(), re.MULTILINE):
            yield path.name, variable


def test_every_setting_that_a_container_is_given_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = [(place, variable) for place, variable in settings_named() if variable.startswith(PREFIX)]
    assert {place for place, _ in named} >= {"Dockerfile", "compose.yaml, service", "kustomization.yaml"}
    assert [(place, variable) for place, variable in named if variable not in known] == []


def test_probes_and_checks_ask_routes_that_are_there(client: TestClient) -> None:
    text = "\n".join(path.read_text() for path in [*MANIFESTS, DOCKER / "Dockerfile", DOCKER / "haproxy.cfg"])
    asked = set(re.findall(r"/health/(?:live|ready|serving|startup)\b|/metrics\b", text))
    assert asked == {"/health/live", "/health/ready", "/health/serving", "/health/startup", "/metrics"}
    for route in asked:
        assert client.get(route).status_code == 200


def test_the_drain_is_seen_before_the_listener_closes_and_fits_the_time_to_stop() -> None:
    """The balancer needs `fall` checks, and one of them to be due."""
    image = float(re.findall(r"ADAPTIDE_DRAIN=(\d+)", (DOCKER / "Dockerfile").read_text())[0])
    pods = float(re.findall(r"ADAPTIDE_DRAIN=(\d+)", (DOCKER / "kubernetes" / "kustomization.yaml").read_text())[0])
    interval, fall = re.findall(r"check inter (\d+)ms .* fall (\d+)", (DOCKER / "haproxy.cfg").read_text())[0]
    assert image > (int(fall) + 1) * int(interval) / 1000
    pod = next(part for part in documents(DOCKER / "kubernetes" / "service.yaml") if part["kind"] == "Deployment")
    pod = pod["spec"]["template"]["spec"]
    probe = pod["containers"][0]["readinessProbe"]
    assert pods > (probe["failureThreshold"] + 1) * probe["periodSeconds"]
    grace = compose()["services"]["service"]["stop_grace_period"]
    for limit in (float(grace.removesuffix("s")), pod["terminationGracePeriodSeconds"]):
        assert limit > 25
    assert Settings(drain=max(image, pods)).drain.total_seconds() == max(image, pods)


def test_replicas_of_the_service_can_be_added() -> None:
    services = compose()["services"]
    assert "ports" not in services["service"]
    assert "container_name" not in services["service"]
    assert "service:8000" in (DOCKER / "haproxy.cfg").read_text()
    assert services["trainer"]["deploy"]["replicas"] == 2


def test_nothing_of_ours_runs_as_root_or_writes_to_its_image() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001"]
    assert text.index("USER 10001") < text.index("AS trainer") < text.index("AS service")
    for name in ("migrations", "service", "trainer"):
        service = compose()["services"][name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
    for path in MANIFESTS:
        for part in documents(path):
            if part["kind"] not in ("Deployment", "Job"):
                continue
            pod = part["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True, path.name
            (container,) = pod["containers"]
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, path.name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, path.name


def test_no_secret_is_in_the_files() -> None:
    for path in [ROOT / "compose.yaml", *MANIFESTS]:
        for found in re.findall(r"(?:postgresql|redis)://[^\s:]+:([^@\s]+)@", path.read_text()):
            assert found.startswith("${") or found == "PASSWORD", path.name


# Metrics


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def alert_queries() -> list[str]:
    return [rule["expr"] for group in documents(ALERTS)[0]["groups"] for rule in group["rules"]]


def test_every_metric_of_the_dashboard_and_the_alerts_is_shown(client: TestClient) -> None:
    shown: set[str] = set()
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            shown |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    for queries in (dashboard_queries(), alert_queries()):
        used = {name for query in queries for name in OURS.findall(query)}
        assert len(used) >= 9
        assert used - shown == set()


def test_panels_and_provisioning_name_one_data_source() -> None:
    (source,) = documents(DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml")[0]["datasources"]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert {p["datasource"]["uid"] for p in panels if "targets" in p} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
