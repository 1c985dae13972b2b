"""Every query of the dashboard, and every rule, on a real Prometheus that scrapes a real server."""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import re
import socket
import threading

import grpc
import pytest
import yaml

from ddl_client import Client, RpcError
from manifests import KUBERNETES, ROOT
from prometheus_server import Prometheus
from server_process import Server

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "ddl-server.json").read_text())
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
MODEL = ROOT / "models" / "ddl-demo"
VARIABLES = {"$job": "ddl-server", "$model": ".*", "$instance": ".*", "$__rate_interval": "1m"}

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f'{panel["title"]} {target["refId"]}': target["expr"]
           for panel in PANELS for target in panel["targets"]}
# What stays at zero as long as nothing is wrong with the machine, and nobody stops the server.
FAULTS = {"Non-finite logits A", "Steps beyond --step_timeout A", "Draining A"}
# More than the server of the test can hold: requests wait and are refused, sequences preempted.
SMALL = ["--max_running_sequences=8", "--max_waiting_requests=4", "--kv_cache_memory=12MiB",
         "--max_connections=16", "--max_connection_rate=10", "--api_keys_reload_interval=1s"]
OVERLOAD_THREADS = 20
API_KEY = "key of the test"
each_query = pytest.mark.parametrize(("name", "query"), QUERIES.items(), ids=QUERIES)


def documented_metrics():
    """The names in the first column of docs/metrics.md's tables."""
    cells = re.findall(r"^\| (`(?:ddl|process)_.*?) \|", (ROOT / "docs" / "metrics.md").read_text(),
                       re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def metrics_in(expression):
    """The metrics that an expression reads, without recorded ones; histograms by their own name."""
    names = re.findall(r"(?<![\w:])(?:ddl|process)_\w+(?![\w:])", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def finite(series):
    return [value for _, value in series if math.isfinite(value)]


def calls_of_all_kinds(client):
    client.embed(["She was very happy.", "They drove to town."])
    client.tokenize(["some text"])
    client.generate("She was", max_tokens=12, temperature=0)
    list(client.stream("It was a fine morning, and", max_tokens=12, seed=1))
    with pytest.raises(RpcError):
        client.generate("She was", temperature=-1)
    with pytest.raises(RpcError) as error:
        client.generate("She was", max_tokens=900, ignore_eos=True, timeout=0.3)
    assert error.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    stream = client.stream("She was", max_tokens=900, ignore_eos=True, temperature=1)
    next(iter(stream))
    stream.cancel()


def overload(server, prometheus):
    """Until everything that comes with too much of it has happened, and has been scraped."""
    stopping = threading.Event()
    long_prompt = "She was very happy, and they drove to town in the morning. " * 4

    def call_until_stopped():
        while not stopping.is_set():
            try:
                list(server.client.stream(long_prompt, max_tokens=400, ignore_eos=True))
            except RpcError as error:
                assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED, error
                stopping.wait(0.1)  # a client that is refused waits

    def read_nothing():
        """More, and larger, events than buffers on the way can hold, whose windows do not grow."""
        with grpc.insecure_channel(server.address, [("grpc.http2.bdp_probe", 0)]) as channel:
            stream = Client(channel=channel, api_key=API_KEY).stream("She was", max_tokens=400, n=4, logprobs=20,
                                                    ignore_eos=True)
            next(iter(stream))
            server.wait_for_metrics(lambda scrape: scrape.value("ddl_sequences_paused",
                                                                reason="slow_reader") > 0)
            prometheus.wait_for_samples(2)
            stream.cancel()

    happened = [("ddl_preemptions_total", {}), ("ddl_prefix_cache_hit_tokens_total", {}),
                ("ddl_admission_rejections_total", {"reason": "queue_full"})]
    with concurrent.futures.ThreadPoolExecutor(OVERLOAD_THREADS) as pool:
        try:
            read_nothing()
            calls = [pool.submit(call_until_stopped) for _ in range(OVERLOAD_THREADS)]
            server.wait_for_metrics(lambda scrape: all(
                scrape.value(name, **labels) > 0 for name, labels in happened))
            prometheus.wait_for_samples(3)
        finally:
            stopping.set()
        for call in calls:
            call.result()


@pytest.fixture(scope="module")
def flags_of_the_deployment():
    lines = (KUBERNETES / "base" / "flags.env").read_text().splitlines()
    flags = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    # Not waited for here.
    return flags | {"DDL_DRAIN_DELAY": "0"}


def come_and_change_keys(server, keys):
    """More connections than the server allows, and faster; a file of keys that is bad, and a good one."""
    host, port = server.address.rsplit(":", 1)
    with contextlib.ExitStack() as connections:
        for _ in range(20):
            connections.enter_context(socket.create_connection((host, int(port))))
        for name in ("ddl_connections_refused_total", "ddl_connections_delayed_total"):
            server.wait_for_metrics(lambda scrape, name=name: scrape.value(name) > 0)
    good = keys.read_text()
    for content, result in (("what is this", "failed"), (good + "# the same\n", "ok")):
        keys.write_text(content)
        server.wait_for_metrics(lambda scrape, result=result: scrape.value(
            "ddl_api_keys_reloads_total", result=result) > 0)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory, flags_of_the_deployment):
    """(Prometheus, server) after some load, and with two more scrapes behind it."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"tester sha256:{hashlib.sha256(API_KEY.encode()).hexdigest()}\n")
    with (Server(MODEL, *SMALL, f"--api_keys_file={keys}", **flags_of_the_deployment) as server,
          Prometheus(tmp_path_factory.mktemp("prometheus"), server.metrics_address) as prometheus):
        server.client.close()
        server.client = Client(server.address, api_key=API_KEY)
        prometheus.wait_for_samples(1)  # the counters at zero
        come_and_change_keys(server, keys)
        for _ in range(2):
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                for call in [pool.submit(calls_of_all_kinds, server.client) for _ in range(4)]:
                    call.result()
            prometheus.wait_for_samples(2)
        overload(server, prometheus)
        yield prometheus, server


def test_names_are_documented():
    documented = documented_metrics()
    rules = RULES.read_text()
    assert metrics_in(rules) <= documented
    for query in QUERIES.values():
        assert metrics_in(query) <= documented, query


def test_every_metric_is_on_the_dashboard():
    shown = set().union(*map(metrics_in, QUERIES.values()))
    # Nothing to look at beside the resident memory.
    assert documented_metrics() - shown == {"process_virtual_memory_bytes"}


def test_metrics_are_served(scraped):
    _, server = scraped
    served = {name + "_total" if kind == "counter" else name
              for name, kind in server.scrape().types.items()}
    assert documented_metrics() <= served
    assert {name for name in served if name.startswith("ddl_")} <= documented_metrics()


@each_query
def test_query(scraped, name, query):
    """It was above zero at some time, as the dashboard's graph would show."""
    prometheus, _ = scraped
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    assert "$" not in query
    largest = max(finite(prometheus.query(f"max_over_time(({query})[10m:1s])")), default=None)
    assert largest is not None, query
    assert (largest == 0) == (name in FAULTS), f"{query}: {largest}"


def test_rules(scraped):
    prometheus, _ = scraped
    rules = {rule["name"]: rule for rule in prometheus.rules()}
    written = [rule for group in yaml.safe_load(RULES.read_text())["groups"]
               for rule in group["rules"]]
    assert rules.keys() == {rule.get("alert") or rule["record"] for rule in written}
    for rule in rules.values():
        assert rule["health"] == "ok", rule
    recorded = {labels["slo"]: value for labels, value in prometheus.query(
        'job_model_slo:ddl_error_budget_burn:rate5m{model="ddl-demo"}')}
    assert recorded.keys() == {"availability", "first_token", "inter_token"}
    # The calls that ran out of time count.
    assert recorded["availability"] > 14.4


def test_the_dashboard_is_well_formed():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables, panel["title"]
