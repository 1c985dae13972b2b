"""A real Prometheus with the rules of deploy/prometheus, for a test."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request

import yaml

from manifests import ROOT
from server_process import Log

PROMETHEUS = ROOT / ".venv" / "bin" / "prometheus"
CONFIGURATION = ROOT / "deploy" / "prometheus"
START_SECONDS = 60
STOP_SECONDS = 30


class Prometheus:
    """Scrapes one address every second with the configuration of deploy/prometheus, on a free port.

    Thread-compatible. `folder` is empty, and the caller's to remove.
    """

    def __init__(self, folder, target):
        configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        [job] = configuration["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        self.job = job["job_name"]
        self._folder = folder
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        shutil.copy(CONFIGURATION / "rules.yaml", folder)

    def __enter__(self):
        self._process = subprocess.Popen(
            [PROMETHEUS, f"--config.file={self._folder}/prometheus.yml",
             f"--storage.tsdb.path={self._folder}/data", "--web.listen-address=127.0.0.1:0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={name: value for name, value in os.environ.items()
                 if not name.lower().endswith("_proxy")})
        try:
            self.log = Log(self._process.stderr)
            address = self.log.wait_for(r'msg="Listening on" address=(\S+)', START_SECONDS)[1]
            self._url = f"http://{address}/api/v1"
            self.log.wait_for("Server is ready", START_SECONDS)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(self, kind, error, traceback):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def _get(self, path, **parameters):
        """`data` of an answer; urllib's HTTPError for a query that Prometheus refuses."""
        url = f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        """[(labels, value)] of the expression now."""
        data = self._get("query", query=expression)
        assert data["resultType"] == "vector", expression
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def rules(self):
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait_for_samples(self, more, timeout=60):
        """Until `more` further scrapes of the target have been stored."""
        counted = f'max(count_over_time(up{{job="{self.job}"}}[1h]))'

        def samples():
            return sum(value for _, value in self.query(counted))

        wanted = samples() + more
        deadline = time.monotonic() + timeout
        while samples() < wanted:
            assert time.monotonic() < deadline, f"no scrape in {timeout} s:\n{self.log.text()}"
            time.sleep(0.1)  # between two looks; what ends the wait is the count
