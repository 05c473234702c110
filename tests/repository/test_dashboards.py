"""Dashboard, rules and provisioning: whatever they ask for exists, and Prometheus accepts it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from pointsweep.execution.prometheus import GAUGES

FOLDER = Path(__file__).parents[2] / "dashboards"
DASHBOARD = json.loads((FOLDER / "pointsweep.json").read_text())
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())
RAYS = set(re.findall(r"\bray_\w+", Path(default_dashboard_panels.__file__).read_text()))
OURS = {f"ray_{name}": {label} - {""} for name, (label, _) in GAUGES.items()}


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


def test_every_gauge_is_shown():
    shown = set(re.findall(r"\bray_pointsweep_\w+", json.dumps(DASHBOARD)))
    assert shown == set(OURS)


def test_panels_have_places_and_ids_of_their_own():
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


def test_the_provisioning_fits_together():
    [source] = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    used = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
    assert used == {source["uid"]}
    [provider] = yaml.safe_load((FOLDER / "provisioning/dashboards/pointsweep.yaml").read_text())["providers"]
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    mounts = [volume.split(":") for service in compose.values() for volume in service["volumes"]]
    assert any(Path(inside).parent == Path(provider["options"]["path"]) for _, inside, _ in mounts)
    assert all((FOLDER / outside).exists() for outside, _, _ in mounts if outside.startswith("./"))


def test_every_alert_says_how_to_mend_it():
    assert all({"summary", "mend"} <= set(rule["annotations"]) for group in RULES["groups"] for rule in group["rules"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool; Debian's package prometheus has it")
def test_prometheus_accepts_configuration_rules_and_expressions(tmp_path):
    subprocess.run(["promtool", "check", "config", FOLDER / "prometheus.yml"], check=True)
    rules = [{"record": f"x:y{number}", "expr": text} for number, text in enumerate(expressions().values())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", tmp_path / "all.yml"], check=True)
