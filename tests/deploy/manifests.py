"""The Kubernetes manifests as kubectl renders them."""

import os
import pathlib
import re
import subprocess
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUBECTL = ROOT / ".venv" / "bin" / "kubectl"


class Manifests:
    """Rendered manifests, by kind."""

    def __init__(self, documents):
        self.documents = documents

    def of(self, kind):
        return [document for document in self.documents if document["kind"] == kind]

    def one(self, kind):
        [found] = self.of(kind)
        return found

    def pods(self):
        """(name, pod spec, pod labels) of everything that makes pods."""
        for document in self.documents:
            name = f'{document["kind"]} {document["metadata"]["name"]}'
            if document["kind"] == "Deployment":
                template = document["spec"]["template"]
                yield name, template["spec"], template["metadata"]["labels"]
            elif document["kind"] == "InferenceService":
                # The predictor is a pod spec with a few fields of KServe's own.
                own = ("minReplicas", "maxReplicas", "timeout", "containerConcurrency")
                predictor = document["spec"]["predictor"]
                yield name, {key: value for key, value in predictor.items() if key not in own}, {}

    def environment(self, container):
        """What the container finds in its environment, Secrets left out."""
        found = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                name = source["configMapRef"]["name"]
                [data] = [config["data"] for config in self.of("ConfigMap")
                          if config["metadata"]["name"] == name]
                found |= data
        return found | {entry["name"]: entry["value"] for entry in container.get("env", [])}


def read(path):
    with open(path) as file:
        return Manifests([document for document in yaml.safe_load_all(file) if document])


def render(folder):
    rendered = subprocess.run([KUBECTL, "kustomize", folder], text=True, capture_output=True,
                              check=False)
    assert rendered.returncode == 0, rendered.stderr
    # Deprecated fields are complained about here.
    assert rendered.stderr == "", rendered.stderr
    return Manifests(list(yaml.safe_load_all(rendered.stdout)))


def compose(overlay, *components):
    """An overlay with components on top, as a user's own kustomization would have them."""
    with tempfile.TemporaryDirectory() as folder:
        relative = os.path.relpath(KUBERNETES, os.path.realpath(folder))
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [f"{relative}/overlays/{overlay}"],
            "components": [f"{relative}/components/{component}" for component in components]}
        (pathlib.Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return render(folder)


def all_manifests():
    """{name: Manifests} of everything in deploy/kubernetes."""
    return {
        "cpu": render(KUBERNETES / "overlays" / "cpu"),
        "gpu": render(KUBERNETES / "overlays" / "gpu"),
        "monitoring": render(KUBERNETES / "overlays" / "monitoring"),
        "gpu, keda, object storage": compose("gpu", "monitoring", "autoscaling-keda",
                                             "models-object-storage"),
        "cpu, pvc, keys": compose("cpu", "models-pvc", "api-keys"),
        "kserve": read(KUBERNETES / "kserve" / "inferenceservice.yaml"),
    }


def seconds(duration):
    """'20s', '2m' or '0' as the server's flags take them."""
    if duration == "0":
        return 0
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", duration).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]
