"""The systemd unit fits the server: its flags, its layout, its time to drain."""

import re

import pytest

import server_process
from manifests import ROOT, seconds

FOLDER = ROOT / "deploy" / "systemd"
UNIT = (FOLDER / "ddl-server.service").read_text()
# Between the longest drain that the flags allow and SIGKILL.
MARGIN_SECONDS = 5


def setting(name):
    """All values of a setting of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


@pytest.fixture(scope="module")
def environment():
    lines = (FOLDER / "ddl-server.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_environment(environment):
    """The flags exist and their values can be: the server gets as far as reading the model."""
    nowhere = {"DDL_MODEL": "/nonexistent", "DDL_GRPC_ADDRESS": "127.0.0.1:0",
               "DDL_METRICS_ADDRESS": "127.0.0.1:0"}
    code, _, err = server_process.run(**(environment | nowhere))
    assert code == 2
    assert "/nonexistent" in err
    _, text, _ = server_process.run("--help")
    assert environment.keys() <= {f"DDL_{flag.upper()}"
                                  for flag in re.findall(r"^  --(\w+)", text, re.MULTILINE)}


def test_paths(environment):
    """As the installation lays them out."""
    assert setting("ExecStart") == ["/opt/ddl/bin/ddl_server"]
    assert setting("EnvironmentFile") == ["/etc/ddl-server/ddl-server.env"]
    assert environment["DDL_MODEL"] == "/opt/ddl/share/ddl/models/ddl-demo"
    layout = (ROOT / "cmake" / "Installation.cmake").read_text()
    assert "share/ddl/models/ddl-demo" in layout


def test_there_is_time_to_drain(environment):
    [timeout] = setting("TimeoutStopSec")
    drain = seconds(environment["DDL_DRAIN_DELAY"]) + seconds(environment["DDL_DRAIN_TIMEOUT"])
    assert int(timeout) >= drain + MARGIN_SECONDS


def test_a_bad_setting_is_not_tried_again():
    code, _, _ = server_process.run("--model=/nonexistent", "--grpc_address=127.0.0.1:0",
                                    "--metrics_address=127.0.0.1:0")
    assert setting("RestartPreventExitStatus") == [str(code)]


@pytest.mark.parametrize(("name", "value"), [
    ("DynamicUser", "yes"), ("ProtectSystem", "strict"), ("ProtectHome", "yes"),
    ("NoNewPrivileges", "yes"), ("CapabilityBoundingSet", ""), ("PrivateDevices", "yes"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"), ("RestrictNamespaces", "yes")])
def test_hardening(name, value):
    assert setting(name) == [value]
