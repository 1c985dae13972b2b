"""The manifests are valid for a current Kubernetes, fit together, and fit the server."""

import json
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

import server_process
from manifests import KUBERNETES, ROOT, all_manifests, seconds

SCHEMAS = ROOT / "tests" / "deploy" / "schemas"
VERSION = "1.37"
MANIFESTS = all_manifests()
# Between the longest drain that the flags allow and SIGKILL.
MARGIN_SECONDS = 5

each_manifests = pytest.mark.parametrize("manifests", MANIFESTS.values(), ids=MANIFESTS)
each_document = pytest.mark.parametrize("document", [
    pytest.param(document, id=f'{name}: {document["kind"]} {document["metadata"]["name"]}')
    for name, manifests in MANIFESTS.items() for document in manifests.documents])
each_pod = pytest.mark.parametrize(("manifests", "pod", "labels"), [
    pytest.param(manifests, pod, labels, id=f"{name}: {pod_name}")
    for name, manifests in MANIFESTS.items() for pod_name, pod, labels in manifests.pods()])


def server_container(pod):
    """The container that runs ddl_server."""
    [container] = [container for container in pod["containers"]
                   if container["name"] in ("ddl-server", "kserve-container")]
    return container


def own_schema(kind):
    """The schema of a custom resource; None for Kubernetes' own kinds."""
    path = SCHEMAS / f"{kind.lower()}.json"
    return json.loads(path.read_text()) if path.exists() else None


def check_document(document):
    """Raises unless the document obeys its schema; a kind without a schema raises too."""
    if (schema := own_schema(document["kind"])) is not None:
        jsonschema.Draft7Validator.check_schema(schema)
        jsonschema.Draft7Validator(schema).validate(document)
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)


@each_document
def test_schema(document):
    check_document(document)


@each_pod
def test_pod_schema(manifests, pod, labels):
    check_document({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod})


@pytest.mark.parametrize(("what", "document"), [
    ("unknown kind", {"apiVersion": "example.com/v1", "kind": "Widget",
                      "metadata": {"name": "any"}, "spec": {}}),
    ("unknown field", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "any"},
                       "automountServiceAccountTokens": False}),
    ("unknown field of a custom resource", {
        "apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor",
        "metadata": {"name": "any"},
        "spec": {"selector": {}, "endpoints": [{"ports": "metrics"}]}}),
])
def test_the_schemas_refuse(what, document):
    with pytest.raises((kubernetes_validate.SchemaNotFoundError, jsonschema.ValidationError,
                        kubernetes_validate.ValidationError)):
        check_document(document)


@each_manifests
def test_names_are_unique(manifests):
    names = [(document["kind"], document["metadata"]["name"]) for document in manifests.documents]
    assert sorted(set(names)) == sorted(names)


@each_manifests
def test_selectors_match_the_pods(manifests):
    for _, _, labels in manifests.pods():
        for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
            for document in manifests.of(kind):
                selector = document["spec"].get(
                    "podSelector" if kind == "NetworkPolicy" else "selector")
                selector = selector.get("matchLabels", {}) if kind != "Service" else selector
                assert selector, f"{kind} selects every pod, or none"
                assert selector.items() <= labels.items(), kind
    for deployment in manifests.of("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        for constraint in spec["topologySpreadConstraints"]:
            assert constraint["labelSelector"] == deployment["spec"]["selector"]
        assert [account["metadata"]["name"] for account in manifests.of("ServiceAccount")] == [
            spec["serviceAccountName"]]


@each_manifests
def test_ports_exist(manifests):
    for _, pod, _ in manifests.pods():
        ports = {port["name"]: port["containerPort"] for port in server_container(pod)["ports"]}
        for service in manifests.of("Service"):
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]
        for policy in manifests.of("NetworkPolicy"):
            for rule in policy["spec"]["ingress"]:
                assert {port["port"] for port in rule["ports"]} <= ports.keys()


@each_manifests
def test_references(manifests):
    """What is named is there, or is one of the things that the user makes."""
    made_by_the_user = {("Secret", "ddl-model-storage"), ("Secret", "ddl-api-keys")}
    present = {(document["kind"], document["metadata"]["name"]) for document in manifests.documents}
    for _, pod, _ in manifests.pods():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for volume in pod.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in present
            if secret := volume.get("secret"):
                assert ("Secret", secret["secretName"]) in made_by_the_user
        for container in pod["containers"] + pod.get("initContainers", []):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            for source in container.get("envFrom", []):
                if reference := source.get("configMapRef"):
                    assert ("ConfigMap", reference["name"]) in present
                else:
                    assert ("Secret", source["secretRef"]["name"]) in made_by_the_user
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for scaler in manifests.of(kind):
            target = scaler["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in present


@pytest.fixture(scope="module")
def flags():
    """The names by which the server's flags are set in the environment."""
    code, text, _ = server_process.run("--help")
    assert code == 0
    return {f"DDL_{flag.upper()}" for flag in re.findall(r"^  --(\w+)", text, re.MULTILINE)}


@each_pod
def test_flags(flags, manifests, pod, labels):
    environment = manifests.environment(server_container(pod))
    ours = {name for name in environment if name.startswith("DDL_")}
    assert "DDL_MODEL" in ours
    assert ours <= flags


PROBED_PAGES = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


@each_pod
def test_addresses(manifests, pod, labels):
    """The server listens where the ports and probes say; where nothing is set, by default."""
    container = server_container(pod)
    environment = manifests.environment(container)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    grpc = environment.get("DDL_GRPC_ADDRESS", "0.0.0.0:8500")
    assert grpc == f'0.0.0.0:{ports.get("grpc", ports.get("h2c"))}'
    if "metrics" in ports:
        assert environment.get("DDL_METRICS_ADDRESS") == f'0.0.0.0:{ports["metrics"]}'
    for probe, page in PROBED_PAGES.items():
        if "grpc" in container[probe]:
            assert f'0.0.0.0:{container[probe]["grpc"]["port"]}' == grpc, probe
        else:
            assert container[probe]["httpGet"] == {"path": page, "port": "metrics"}, probe
            assert "metrics" in ports


@each_pod
def test_models_are_mounted(manifests, pod, labels):
    container = server_container(pod)
    environment = manifests.environment(container)
    folder = environment["DDL_MODEL"].split("=")[-1]
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if "STORAGE_URI" in environment:
        mounts.append("/mnt/models")  # by KServe
    in_the_image = folder.startswith("/opt/ddl/share/ddl/models/")
    assert in_the_image != any(folder.startswith(mount) for mount in mounts)
    if in_the_image:
        assert (ROOT / "models" / folder.rsplit("/", 1)[-1] / "config.json").exists()


@each_pod
def test_there_is_time_to_drain(manifests, pod, labels):
    container = server_container(pod)
    environment = manifests.environment(container)
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = seconds(environment["DDL_DRAIN_DELAY"]) + seconds(environment["DDL_DRAIN_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] >= sleep + drain + MARGIN_SECONDS
    # Clients that watch health are told before calls are refused.
    assert seconds(environment["DDL_DRAIN_DELAY"]) > 0


@each_pod
def test_restricted(manifests, pod, labels):
    """What the Pod Security Standard `restricted` asks for, and a read-only root file system."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod.get("volumes", []):
        assert {"persistentVolumeClaim", "emptyDir", "configMap", "secret"} & volume.keys()
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]}}, container["name"]
        assert not any("hostPort" in port for port in container.get("ports", []))


@each_pod
def test_resources(manifests, pod, labels):
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        limits = container["resources"]["limits"]
        assert "memory" in limits and "cpu" not in limits


def test_the_user_of_the_image():
    [user] = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for manifests in MANIFESTS.values():
        for name, pod, _ in manifests.pods():
            context = pod["securityContext"]
            assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user, name


def test_api_keys():
    """The flag names a file of the Secret's folder, which the server's group may read."""
    manifests = MANIFESTS["cpu, pvc, keys"]
    pod = manifests.one("Deployment")["spec"]["template"]["spec"]
    container = server_container(pod)
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "api-keys"]
    assert manifests.environment(container)["DDL_API_KEYS_FILE"] == f'{mount["mountPath"]}/keys'
    assert mount["readOnly"] and "subPath" not in mount, "a file mounted alone never changes"
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "api-keys"]
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_gpu():
    pod = MANIFESTS["gpu"].one("Deployment")["spec"]["template"]["spec"]
    container = server_container(pod)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert MANIFESTS["gpu"].environment(container)["DDL_DEVICE"] == "cuda"


@pytest.mark.parametrize("name", ["monitoring", "gpu, keda, object storage"])
def test_autoscaling(name):
    manifests = MANIFESTS[name]
    # An autoscaler decides the number; a number in the manifest would undo that at every rollout.
    assert "replicas" not in manifests.one("Deployment")["spec"]
    if name == "monitoring":
        [metric] = manifests.one("HorizontalPodAutoscaler")["spec"]["metrics"]
        served = metric["pods"]["metric"]["name"]
        rules = yaml.safe_load(
            (KUBERNETES / "components" / "autoscaling-hpa" / "adapter-rules.yaml").read_text())
        [rule] = rules["rules"]
        assert rule["name"]["as"] == served
        assert rule["seriesQuery"].startswith("ddl_requests_waiting{")
    else:
        [trigger] = manifests.one("ScaledObject")["spec"]["triggers"]
        assert "ddl_requests_waiting" in trigger["metadata"]["query"]


def test_scraping():
    """One Service with the port to scrape, under the job name that alerts and dashboard expect."""
    manifests = MANIFESTS["monitoring"]
    monitor = manifests.one("ServiceMonitor")["spec"]
    [endpoint] = monitor["endpoints"]
    wanted = monitor["selector"]["matchLabels"]
    selected = [service for service in manifests.of("Service")
                if wanted.items() <= service["metadata"]["labels"].items()
                and endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}]
    assert [service["metadata"]["name"] for service in selected] == ["ddl-server-headless"]
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    assert selected[0]["metadata"]["labels"][monitor["jobLabel"]] == job["job_name"]


def test_the_rules_are_those_of_prometheus():
    """If not: make kubernetes-rules."""
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    assert MANIFESTS["monitoring"].one("PrometheusRule")["spec"] == rules
