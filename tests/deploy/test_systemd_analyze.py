"""What systemd itself says of the unit."""

import re
import shutil
import subprocess

import pytest

from manifests import ROOT

UNIT = ROOT / "deploy" / "systemd" / "ddl-server.service"
# systemd's score from 0 (shut in) to 10 (exposed). What remains: the network, and files of the
# machine that can be read.
MOST_EXPOSURE = 1.5

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None,
                                reason="needs systemd-analyze, of Debian's package systemd")


def analyze(*arguments):
    done = subprocess.run(["systemd-analyze", "--man=no", *map(str, arguments)], text=True,
                          capture_output=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_verify(tmp_path):
    """Nothing to complain about, once the program is where the unit says."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/ddl/bin/ddl_server", "/bin/true"))
    assert analyze("verify", unit) == (0, "")


def test_verify_complains(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text() + "\n[Service]\nProtectSistem=strict\n")
    _, output = analyze("verify", unit)
    assert "ProtectSistem" in output


def test_exposure():
    _, output = analyze("security", "--offline=true", UNIT)
    [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", output)
    assert float(exposure) <= MOST_EXPOSURE
