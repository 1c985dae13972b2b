"""The rules: valid, shown to fire and to clear, a section of the handbook behind each alert."""

import re
import subprocess

import pytest
import yaml

from manifests import ROOT

PROMTOOL = ROOT / ".venv" / "bin" / "promtool"
PROMETHEUS = ROOT / "deploy" / "prometheus"
UNIT_TESTS = ROOT / "tests" / "deploy" / "alerts_test.yaml"
HANDBOOK = ROOT / "docs" / "operations.md"

RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
         for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
each_alert = pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)


def promtool(*arguments):
    done = subprocess.run([PROMTOOL, *arguments], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def anchors(markdown):
    """The fragments that lead to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
            for heading in headings]


def test_configuration():
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_alerts_fire_and_clear():
    assert "SUCCESS" in promtool("test", "rules", UNIT_TESTS)


@each_alert
def test_alert_is_tested(alert):
    """In one of the unit tests it fires at one time, and at the next it no longer does."""
    shown = []
    for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]:
        moments = sorted((int(moment["eval_time"].removesuffix("m")), bool(moment["exp_alerts"]))
                         for moment in test.get("alert_rule_test", [])
                         if moment["alertname"] == alert["alert"])
        shown.append([fires for _, fires in moments])
    assert any([True, False] == moments[i:i + 2]
               for moments in shown for i in range(len(moments)))


@each_alert
def test_alert_has_a_runbook(alert):
    assert alert["labels"]["severity"] in ("page", "ticket")
    path, fragment = alert["annotations"]["runbook"].split("#")
    assert ROOT / path == HANDBOOK
    assert fragment == alert["alert"].lower()
    assert anchors(HANDBOOK.read_text()).count(fragment) == 1


def test_no_runbook_is_left_over():
    found = {anchor for anchor in anchors(HANDBOOK.read_text())
             if re.fullmatch(r"ddl[a-z]+", anchor)}
    assert found == {alert.lower() for alert in ALERTS}
