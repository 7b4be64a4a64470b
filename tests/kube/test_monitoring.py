"""The monitoring component: what it scrapes, and that queries ask for metrics that there are."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kube_manifests import KUBE, Manifest, one, pods, ray_spec
from kube_policies import kuberay_problems, schema_problems
from kubernetes_validate import validate

from charactertrain.runtime.metric_catalog import ALL, RAY_PREFIX

Build = Callable[[Path | str], list[Manifest]]

COMPONENT = KUBE / "components" / "monitoring"
OURS = {f"{RAY_PREFIX}{metric.name}": metric for metric in ALL}

_WORDS = {
    "and", "avg", "by", "count", "max", "min", "offset", "on", "or", "rate", "sum", "time",
    "unless", "without",
}  # fmt: skip
"""Functions and operators that queries use."""


@pytest.fixture(name="monitored")
def monitored_run(build: Build, tmp_path: Path) -> list[Manifest]:
    """multi-node with the component."""
    return build(written(tmp_path, "multi-node", "monitoring"))


def written(directory: Path, overlay: str, *components: str) -> Path:
    # Kustomize takes no absolute paths.
    up = "../" * (len(directory.parts) - 1)
    listed = "".join(f"  - {up}{KUBE}/components/{name}\n" for name in components)
    (directory / "kustomization.yaml").write_text(
        f"resources:\n  - {up}{KUBE}/overlays/{overlay}\ncomponents:\n{listed}"
    )
    return directory


def dashboard() -> Any:
    return json.loads((COMPONENT / "dashboard.json").read_text())


def panels() -> list[Any]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> dict[str, list[str]]:
    """Every query of the dashboard, by its panel."""
    return {p["title"]: [target["expr"] for target in p["targets"]] for p in panels()}


def rules(documents: list[Manifest]) -> list[Any]:
    (group,) = one(documents, "PrometheusRule")["spec"]["groups"]
    found: list[Any] = group["rules"]
    return found


def selectors(query: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Names in a query that are no words of the language, and the labels that are asked for."""
    bare = re.sub(r"\b(?:by|on|without)\s*\([^)]*\)", " ", query)
    bare = re.sub(r"\[\w+\]", "", bare)
    for name, labels in re.findall(r"\b([a-z_]\w*)\b(?:\{([^}]*)\})?", bare):
        if name not in _WORDS and not re.fullmatch(r"\d+\w*", name):
            yield name, dict(re.findall(r'(\w+)=~?"([^"]*)"', labels))


def grouping(query: str) -> set[str]:
    """Labels that a query groups or matches by."""
    found = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
    return {label.strip() for labels in found for label in labels.split(",")}


def query_problems(query: str) -> list[str]:
    """What is wrong with a query: brackets, names, labels."""
    found = []
    depth = 0
    for mark in re.sub(r'"[^"]*"', "", query):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(mark, 0)
        if depth < 0:
            break
    if depth:
        found.append("brackets do not close")
    for name, labels in selectors(bare_of_matchers(query)):
        if name not in OURS and name not in rays_own():
            found.append(f"no metric {name}")
        unknown = labels.keys() - set(OURS[name].labels) if name in OURS else set()
        found += [f"{name} has no label {label}" for label in sorted(unknown)]
        if name in OURS:
            lacking = grouping(query) - set(OURS[name].labels)
            found += [f"{name} has no label {label}" for label in sorted(lacking)]
    return found


def bare_of_matchers(query: str) -> str:
    """The query with the values of its matchers emptied: `$run` is Grafana's."""
    return query.replace("$run", "")


def rays_own() -> set[str]:
    """Names of metrics that Ray's agents show of their nodes."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    return {f"{RAY_PREFIX}{name}" for name in METRICS_GAUGES}


def test_every_query_of_the_dashboard_asks_for_a_metric_that_there_is() -> None:
    for title, asked in queries().items():
        assert [problem for query in asked for problem in query_problems(query)] == [], title


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("ray_charactertrain_step_kl", "no metric ray_charactertrain_step_kl"),
        ('ray_charactertrain_step_kl_nats{job="a"}', "has no label job"),
        ("sum by (engine) (ray_charactertrain_step_kl_nats)", "has no label engine"),
        ("rate(ray_charactertrain_engine_requests_total[2m]", "brackets do not close"),
        ("ray_node_gram", "no metric ray_node_gram"),
    ],
)
def test_queries_that_are_wrong_are_found(query: str, problem: str) -> None:
    (found,) = query_problems(query)
    assert problem in found


def test_every_metric_is_on_the_dashboard() -> None:
    asked = {
        name for qs in queries().values() for q in qs for name, _ in selectors(bare_of_matchers(q))
    }
    assert OURS.keys() - asked == set()


def test_totals_are_asked_for_as_totals() -> None:
    for asked in queries().values():
        for query in asked:
            for name in re.findall(r"rate\((\w+)", query):
                assert name.endswith("_total"), query


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    page = dashboard()
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= page.keys()
    assert page["schemaVersion"] >= 36
    assert "id" not in page  # Grafana's own database gives it
    names = {variable["name"] for variable in page["templating"]["list"]}
    assert names == {"datasource", "run"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(page))) - {"__all"} == names
    identifiers = [panel["id"] for panel in page["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert all(target["legendFormat"] for target in panel["targets"])


def test_panels_do_not_lie_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_alerts_ask_for_metrics_that_there_are(monitored: list[Manifest]) -> None:
    for rule in rules(monitored):
        assert query_problems(rule["expr"]) == [], rule["alert"]


def test_there_is_an_alert_for_each_way_to_fail(monitored: list[Manifest]) -> None:
    found = {rule["alert"]: rule["expr"] for rule in rules(monitored)}
    assert found.keys() == {
        "CharactertrainStageStalled",
        "CharactertrainRejectStorm",
        "CharactertrainKlRunaway",
        "CharactertrainEngineLost",
    }
    docs = (KUBE / "README.md").read_text()
    for name in found:
        assert f"`{name}`" in docs


def test_alerts_are_rules_that_prometheus_takes(monitored: list[Manifest]) -> None:
    for rule in rules(monitored):
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"[A-Z]\w+", rule["alert"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))
        # What a template names is there: the query's labels are the metric's, or what it groups by.
        (name, *_) = [name for name, _ in selectors(rule["expr"]) if name in OURS]
        has = (
            grouping(rule["expr"]) if rule["expr"].lstrip("(").startswith(("max", "sum")) else set()
        )
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            assert label in (has or OURS[name].labels), rule["alert"]


def test_every_ray_pod_is_scraped(monitored: list[Manifest]) -> None:
    monitor = one(monitored, "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
    # KubeRay's own label, on head and workers alike; of this namespace, as none other is named.
    assert monitor["spec"]["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    head = next(pod for pod in pods(monitored) if pod.group == "head")
    named = {port["name"]: port["containerPort"] for port in head.container["ports"]}
    assert named[endpoint["port"]] == 8080


def test_hardened_lets_prometheus_in_where_it_scrapes(build: Build, tmp_path: Path) -> None:
    documents = build(written(tmp_path, "hardened", "monitoring"))
    (rule,) = [
        document["spec"]
        for document in documents
        if document["kind"] == "NetworkPolicy" and document["metadata"]["name"] == "metrics"
    ]
    monitor = one(documents, "PodMonitor")
    assert rule["podSelector"] == monitor["spec"]["selector"]
    assert rule["ingress"][0]["ports"] == [{"port": 8080, "protocol": "TCP"}]


def test_grafana_finds_the_dashboard(monitored: list[Manifest]) -> None:
    config = one(monitored, "ConfigMap")
    validate(config, "1.32", strict=True)
    assert config["metadata"]["name"] == "charactertrain-dashboard"
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(config["data"]["charactertrain.json"]) == dashboard()


@pytest.mark.parametrize("overlay", ["cpu-demo", "single-gpu", "multi-node", "hardened"])
def test_the_component_goes_with_an_overlay(build: Build, tmp_path: Path, overlay: str) -> None:
    before = build(f"overlays/{overlay}")
    after = build(written(tmp_path, overlay, "monitoring"))
    assert [document for document in after if ray_spec(document)] == [
        document for document in before if ray_spec(document)
    ]
    for document in after:
        is_ours = document["metadata"].get("namespace") == "charactertrain"
        assert is_ours or document["kind"] == "Namespace"
    job = one(after, "RayJob")
    assert schema_problems(job) == kuberay_problems(job) == []
