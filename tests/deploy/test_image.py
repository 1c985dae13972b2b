"""The container images: built for real, run as they say on a read-only root, called, stopped.

There is no Docker engine in the test: buildah builds (build_image.sh), and the kernel's own
namespaces run them, that with CUDA too on the CPU. DDL_TEST_IMAGE_CPU and DDL_TEST_IMAGE_CUDA name
images that are there already, to be tested in place of new ones.
"""

import contextlib
import glob
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
from typing import NamedTuple

import pytest

from ddl_client import Client
from manifests import ROOT
from scraping import Scrape
from server_process import Log

SCRIPTS = ROOT / "tests" / "deploy"
REVISION = "test"
START_SECONDS = 120
STOP_SECONDS = 60
LIBRARIES = ["libc10.so", "libcudart.so.13", "libcupti.so.13", "libgomp.so.1", "libtorch_cpu.so"]
CUDA_LIBRARIES = [
    "libc10_cuda.so", "libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9", "libcufft.so.12",
    "libcufile.so.0", "libcurand.so.10", "libcusparse.so.12", "libcusparseLt.so.0", "libnccl.so.2",
    "libnvJitLink.so.13", "libnvshmem_host.so.3", "libtorch_cuda.so", "libtorch_nvshmem.so"]


class Target(NamedTuple):
    name: str  # of the Dockerfile
    most_bytes: float  # what docs/operations.md says, and a little room
    libraries: list  # beside the program
    variables: dict  # beside PATH and DDL_MODEL
    why_no_gpu: str  # on a machine without one


TARGETS = [
    Target("cpu", 550e6, LIBRARIES, {}, "this program was built without CUDA"),
    Target("cuda", 2800e6, LIBRARIES + CUDA_LIBRARIES,
           {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
           "this machine has no GPU that CUDA can use"),
]

MISSING = [program for program in ("buildah", "debootstrap", "unshare")
           if not shutil.which(program)]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (Debian packages)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount and change root"),
]


def buildah(*arguments):
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
    if subprocess.run(["buildah", "info"], capture_output=True, check=False).returncode:
        environment["STORAGE_DRIVER"] = "vfs"  # as in build_image.sh
    done = subprocess.run(["buildah", *arguments], text=True, capture_output=True, check=False,
                          env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def target(request):
    return request.param


@pytest.fixture(scope="module")
def image(target):
    """The image's name, once built."""
    if name := os.environ.get(f"DDL_TEST_IMAGE_{target.name.upper()}"):
        return name
    name = f"localhost/ddl-server-test-{target.name}"
    # The target that is the default is not named.
    options = [] if target.name == "cpu" else ["--target", target.name]
    built = subprocess.run(
        [SCRIPTS / "build_image.sh", name, *options, "--build-arg", f"REVISION={REVISION}"],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert built.returncode == 0, built.stdout[-5000:]
    return name


@pytest.fixture(scope="module")
def root(image):
    """The image's files, mounted."""
    container = buildah("from", "--pull-never", image)
    try:
        yield pathlib.Path(buildah("mount", container))
    finally:
        buildah("rm", container)


@pytest.fixture(scope="module")
def config(image):
    return json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]


def command(root, config, arguments, **variables):
    """What runs `arguments` as a container would: the image's user, environment and folder, in
    namespaces of its own for mounts and processes, and with all of its root read-only."""
    environment = [*config["Env"], *(f"{name}={value}" for name, value in variables.items())]
    quoted = shlex.quote(str(root))
    inside = ["chroot", f"--userspec={config['User']}", str(root), "/usr/bin/env", "-i",
              f"--chdir={config['WorkingDir']}", *environment, *arguments]
    script = (f"mount --rbind {quoted} {quoted} && mount -o remount,bind,ro {quoted}"
              f" && mount -t proc proc {quoted}/proc && exec {shlex.join(inside)}")
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]


def run(root, config, arguments, **variables):
    done = subprocess.run(command(root, config, arguments, **variables), text=True,
                          capture_output=True, check=False, timeout=START_SECONDS)
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def container(root, config, *arguments, **variables):
    """(process, log, child's id) of the image's entrypoint with these arguments."""
    process = subprocess.Popen(
        command(root, config, [*config["Entrypoint"], *arguments], **variables),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        log = Log(process.stderr)
        match = log.wait_for(r"listening grpc_address=(\S+) metrics_address=(\S+)", START_SECONDS)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield process, log, match.groups(), int(children)
    finally:
        process.kill()  # and with it, the namespace's processes
        process.wait()


def test_answers_at_once_and_stops(root, config):
    """No flag but the ports, which are the machine's here."""
    variables = {"DDL_GRPC_ADDRESS": "127.0.0.1:0", "DDL_METRICS_ADDRESS": "127.0.0.1:0"}
    with container(root, config, **variables) as (process, log, (grpc, metrics), child):
        with contextlib.closing(Client(grpc, timeout=START_SECONDS)) as client:
            client.wait_until_serving(timeout=START_SECONDS)
            assert client.model_info().name == "ddl-demo"
            log.wait_for(r"loaded .* device=cpu\b")
            # What the build was told, as the image's label says too.
            assert client.server_info().git_commit == REVISION
            completion = client.generate("It was a fine morning, and", max_tokens=8).completions[0]
            assert len(completion.tokens) == 8
            assert len(client.embed(["She was happy."]).embeddings) == 1
        # Who runs, and as what.
        status = pathlib.Path(f"/proc/{child}/status").read_text()
        [uid] = re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE)
        assert f"{uid}:{uid}" == config["User"] == "10001:10001"
        assert pathlib.Path(f"/proc/{child}/exe").readlink().name == "ddl_server"
        # Docker's health check, in the same image and environment.
        health = variables | {"DDL_METRICS_ADDRESS": metrics}
        [kind, *check] = config["Healthcheck"]["Test"]
        assert kind == "CMD"
        assert run(root, config, check, **health)[0] == 0
        assert Scrape.of(metrics).value("ddl_requests_total", code="OK", method="Generate") == 1
        os.kill(child, signal.Signals[config["StopSignal"]])
        process.wait(STOP_SECONDS)
        log.wait_for_end()
        assert process.returncode == 0, log.text()
        assert "drained" in log.text()
        assert run(root, config, check, **health)[0] == 1


def test_own_model(root, config, tmp_path):
    """A folder mounted at /models, named on the command line, which wins over the environment."""
    assert (root / "models").is_dir()
    source = ROOT / "models" / "ddl-demo"
    # A bind mount below the root, made before the root becomes read-only.
    subprocess.run(["mount", "--bind", source, root / "models"], check=True)
    try:
        with container(root, config, "--model=mine=/models", "--grpc_address=127.0.0.1:0",
                       "--metrics_address=127.0.0.1:0") as (_, log, (grpc, _), _):
            with contextlib.closing(Client(grpc, timeout=START_SECONDS)) as client:
                client.wait_until_serving(timeout=START_SECONDS)
                assert client.model_info().name == "mine"
    finally:
        subprocess.run(["umount", root / "models"], check=True)


def test_the_root_is_read_only(root, config):
    """Of the test, not of the image: what the tests above run in does refuse writes."""
    code, _, err = run(root, config, ["touch", "/tmp/file"])
    assert code != 0 and "Read-only file system" in err


def test_flags(root, config):
    code, out, _ = run(root, config, [*config["Entrypoint"], "--help"])
    assert code == 0 and "--grpc_address" in out
    code, _, err = run(root, config, config["Entrypoint"], DDL_DTYPE="float16")
    assert code == 2 and "dtype" in err


@pytest.mark.skipif(bool(glob.glob("/dev/nvidia[0-9]*")), reason="this machine has a GPU")
def test_no_gpu(target, root, config):
    """A start that asks for one ends with its one line; without the flag it computes on the CPU."""
    code, _, err = run(root, config, [*config["Entrypoint"], "--device=cuda"])
    assert code == 2
    assert re.fullmatch(f"ddl_server: --device=cuda: {target.why_no_gpu}.*\n", err), err


def test_configuration(target, config):
    assert config["Entrypoint"] == ["/opt/ddl/bin/ddl_server"]
    assert not config.get("Cmd")
    assert config["StopSignal"] == "SIGTERM"
    assert config["ExposedPorts"].keys() == {"8500/tcp", "9464/tcp"}
    variables = dict(variable.split("=", 1) for variable in config["Env"])
    assert variables.keys() == {"PATH", "DDL_MODEL", *target.variables}
    assert target.variables.items() <= variables.items()
    labels = config["Labels"]
    assert labels["org.opencontainers.image.revision"] == REVISION
    [version] = re.findall(r"project\(ddl VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert labels["org.opencontainers.image.version"] == version


def test_only_what_runs(target, root):
    """No compiler, Python, pip, headers, debug symbols or package lists."""
    for pattern in ("usr/bin/*gcc*", "usr/bin/*g++*", "usr/bin/cc", "usr/bin/make", "usr/bin/cmake",
                    "usr/bin/python*", "usr/bin/pip*", "usr/bin/ld", "usr/include/*",
                    "var/lib/apt/lists/*_Packages*", "source", "**/*.a", "**/.git"):
        assert not list(root.glob(pattern)), pattern
    found = {path.name for path in (root / "opt/ddl/lib").iterdir()}
    assert found == set(target.libraries)
    for program in [root / "opt/ddl/bin/ddl_server", *(root / "opt/ddl/lib").iterdir()]:
        sections = subprocess.run(["readelf", "--sections", "--wide", program], text=True,
                                  capture_output=True, check=True).stdout
        assert ".symtab" not in sections, program


def test_libraries(target, root, config):
    """Every library is found, and every package of apt-runtime.txt is there for one of them."""
    for library in target.libraries:
        _, out, err = run(root, config, ["ldd", f"/opt/ddl/lib/{library}"])
        assert "not found" not in out, (library, out, err)
    _, out, err = run(root, config, ["ldd", "/opt/ddl/bin/ddl_server"])
    assert "not found" not in out and err == ""
    # Debian 12 has /lib as a link to /usr/lib, and packages know their files by either.
    files = {re.sub("^/usr", "", str(pathlib.Path("/" + os.path.relpath(
        os.path.realpath(str(root) + path), root)))) for path in re.findall(r"=> (/\S+)", out)}
    listed = [line.split()[0] for line in
              (ROOT / "deploy/docker/apt-runtime.txt").read_text().splitlines()
              if line and not line.startswith("#")]
    for package in listed:
        [contents] = (root / "var/lib/dpkg/info").glob(f"{package}[.:]*list")
        owned = {re.sub("^/usr", "", line) for line in contents.read_text().splitlines()}
        assert owned & files, f"{package}: none of its libraries is loaded"


def test_the_gpus_part_loads(target, root, config):
    """What a start on a GPU opens, with every symbol that it needs of the others."""
    if target.name == "cuda":
        code, out, err = run(root, config, [*config["Entrypoint"], "--version"], LD_BIND_NOW="1",
                             LD_PRELOAD="/opt/ddl/lib/libtorch_cuda.so")
        assert (code, err) == (0, "") and out.startswith("ddl_server ")


def test_size(target, root):
    """Of the files; what `docker images` shows."""
    seen, total = set(), 0
    for path in root.rglob("*"):
        status = path.lstat()
        if status.st_ino not in seen:
            seen.add(status.st_ino)
            total += status.st_size
    print(f"{total / 1e6:.0f} MB")
    assert total <= target.most_bytes
