"""Dashboard, rules and provisioning: whatever they ask for exists, and Prometheus accepts it."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from pointsweep.execution.prometheus import GAUGES

FOLDER = Path(__file__).parents[2] / "dashboards"
DASHBOARD = json.loads((FOLDER / "pointsweep.json").read_text())
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())
RAYS = set(re.findall(r"\bray_\w+", Path(default_dashboard_panels.__file__).read_text()))
OURS = {f"ray_{name}": {"sweep", label} - {""} for name, (label, _) in GAUGES.items()}


def expressions() -> dict[str, str]:
    found = {f"panel {panel['title']}": target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
    return found | {f"alert {rule['alert']}": rule["expr"] for group in RULES["groups"] for rule in group["rules"]}


@pytest.mark.parametrize("name", expressions())
def test_every_metric_is_ours_or_one_that_rays_own_dashboards_use(name: str):
    metrics = set(re.findall(r"\bray_\w+", expressions()[name]))
    assert metrics
    assert metrics <= set(OURS) | RAYS


@pytest.mark.parametrize("name", expressions())
def test_every_label_of_our_metrics_exists(name: str):
    for metric, labels in re.findall(r"\b(ray_pointsweep_\w+)\{([^}]*)\}", expressions()[name]):
        assert set(re.findall(r"(\w+)\s*[=!]", labels)) <= OURS[metric]


def test_a_sweep_can_be_chosen_and_every_panel_of_ours_follows():
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["multi"], variable["includeAll"]) == ("sweep", True, True)
    assert variable["query"]["query"] == "label_values(ray_pointsweep_trials, sweep)"
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            named = re.findall(r"\bray_pointsweep_\w+", target["expr"])
            chosen = re.findall(r'\bray_pointsweep_\w+\{sweep=~"\$sweep"', target["expr"])
            # What runs is compared with the GPUs in use, which have no sweep.
            if panel["title"] != "Packs per GPU":
                assert len(named) == len(chosen), target["expr"]


def test_every_alert_of_ours_is_told_for_each_sweep():
    for group in RULES["groups"]:
        for rule in group["rules"]:
            named = re.findall(r"\bray_pointsweep_\w+", rule["expr"])
            by_sweep = re.findall(r"(?:sum|max) by \(sweep\) \(ray_pointsweep_\w+", rule["expr"])
            assert len(named) == len(by_sweep), rule["alert"]
            assert not named or "$labels.sweep" in rule["annotations"]["summary"]


def test_no_folder_of_rays_is_fixed():
    """Ray's folder is what `ray start --temp-dir` says: on a shared machine another than /tmp/ray."""
    assert "/tmp/ray" not in (FOLDER / "prometheus.yml").read_text()
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    mounts = [volume for service in services.values() for volume in service["volumes"]]
    assert [mount for mount in mounts if "/tmp/ray" in mount] == ["${RAY_FOLDER:-/tmp/ray}:/ray:ro"]
    [job] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    [found] = job["file_sd_configs"][0]["files"]
    assert found.startswith("/ray/")


def test_every_gauge_is_shown():
    shown = set(re.findall(r"\bray_pointsweep_\w+", json.dumps(DASHBOARD)))
    assert shown == set(OURS)


def test_panels_have_places_and_ids_of_their_own():
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


def unknown_to_grafana(dashboard: Any) -> list[str]:
    """The settings that are lost when Grafana's own model of a dashboard, made from its schema, reads and writes it."""

    def lost(given: Any, kept: Any, path: str) -> Iterator[str]:
        if isinstance(given, dict) and isinstance(kept, dict):
            for key, value in given.items():
                yield from lost(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}"]
        elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
            for number, (one, other) in enumerate(zip(given, kept, strict=True)):
                yield from lost(one, other, f"{path}[{number}]")
        elif given != kept:
            yield path

    plugins.register_default_plugins()
    return list(lost(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard))), ""))


def test_grafanas_schema_knows_every_setting():
    definition = ".templating.list[0].definition"  # which Grafana writes itself beside a query variable
    assert unknown_to_grafana(DASHBOARD) == [definition]
    wrong = copy.deepcopy(DASHBOARD)
    wrong["panels"][0]["targets"][0]["expression"] = "up"
    wrong["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    wrong["refreshing"] = "15s"
    assert set(unknown_to_grafana(wrong)) == {
        definition, ".panels[0].targets[0].expression", ".panels[1].fieldConfig.defaults.units", ".refreshing"
    }  # fmt: skip


def test_the_provisioning_fits_together():
    [source] = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    used = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
    assert used == {source["uid"]}
    [provider] = yaml.safe_load((FOLDER / "provisioning/dashboards/pointsweep.yaml").read_text())["providers"]
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    volumes = [volume for service in compose.values() for volume in service["volumes"]]
    mounts = [volume.split(":") for volume in volumes if volume.startswith("./")]
    assert any(Path(inside).parent == Path(provider["options"]["path"]) for _, inside, _ in mounts)
    assert all((FOLDER / outside).exists() for outside, _, _ in mounts)


def test_kubernetes_gets_the_same_alerts_and_scrapes_every_ray_node():
    monitoring = FOLDER.parent / "cluster" / "kubernetes" / "monitoring"
    rule = yaml.safe_load((monitoring / "prometheusrule.yaml").read_text())
    assert rule["spec"] == RULES
    monitor = yaml.safe_load((monitoring / "podmonitor.yaml").read_text())
    assert monitor["kind"] == "PodMonitor"
    [expression] = monitor["spec"]["selector"]["matchExpressions"]
    assert expression["key"] == "ray.io/node-type" and set(expression["values"]) == {"head", "worker"}
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    kept = yaml.safe_load((monitoring / "kustomization.yaml").read_text())["resources"]
    assert set(kept) == {path.name for path in monitoring.glob("*.yaml")} - {"kustomization.yaml"}


def test_every_alert_says_how_to_mend_it():
    assert all({"summary", "mend"} <= set(rule["annotations"]) for group in RULES["groups"] for rule in group["rules"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool; Debian's package prometheus has it")
def test_prometheus_accepts_configuration_rules_and_expressions(tmp_path):
    subprocess.run(["promtool", "check", "config", FOLDER / "prometheus.yml"], check=True)
    rules = [{"record": f"x:y{number}", "expr": text} for number, text in enumerate(expressions().values())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", tmp_path / "all.yml"], check=True)
