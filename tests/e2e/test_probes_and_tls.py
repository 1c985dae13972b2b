"""What probes see over HTTP, and gRPC over TLS with certificates that change while it serves."""

import collections
import datetime
import os
import signal
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
import trustme

import checkpoints
from ddl_client import Client, RpcError
from server_process import Server, run

PROMPT = [1, 2, 3]


def get(server, path):
    """(code, body)"""
    try:
        with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=30) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_pages():
    with Server(checkpoints.small(), "--drain_delay=30s") as server:
        assert get(server, "/livez") == (200, "alive\n")
        assert get(server, "/readyz") == (200, "ready\n")
        code, text = get(server, "/metrics")
        assert code == 200 and "ddl_server_ready 1\n" in text
        assert get(server, "/nothing")[0] == 404
        server.signal(signal.SIGTERM)
        server.log.wait_for("draining")
        assert get(server, "/livez") == (200, "alive\n")
        assert get(server, "/readyz") == (503, "draining\n")
        server.signal(signal.SIGTERM)  # at once


class Certificates:
    """PEM files in a folder, replaced as Kubernetes does it: by renaming."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = trustme.CA()
        self.certificate, self.key, self.client_ca = (
            str(folder / name) for name in ("tls.crt", "tls.key", "ca.crt"))
        self.issue(self.authority)
        self._replace(self.client_ca, self.authority.cert_pem.bytes())

    def _replace(self, path, content):
        with open(path + ".new", "wb") as file:
            file.write(content)
        os.rename(path + ".new", path)

    def issue(self, authority, **options):
        leaf = authority.issue_cert("localhost", "127.0.0.1", **options)
        self._replace(self.key, leaf.private_key_pem.bytes())
        self._replace(self.certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))

    def flags(self, mutual=False):
        flags = [f"--tls_certificate={self.certificate}", f"--tls_private_key={self.key}",
                 "--tls_reload_interval=1s"]
        return flags + [f"--tls_client_ca={self.client_ca}"] if mutual else flags


def generate(address, authority, leaf=None):
    """Tokens of a call over a new connection; the status code when it failed."""
    identity = {} if leaf is None else dict(
        private_key=leaf.private_key_pem.bytes(),
        certificate_chain=b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), **identity)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, credentials, options) as channel:
        client = Client(channel=channel, timeout=20)
        try:
            answer = client.generate(PROMPT, max_tokens=2, temperature=0)
            return len(answer.completions[0].tokens)
        except RpcError as error:
            return error.code


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


class TlsServer(Server):
    """One that a client without TLS cannot ask for its health."""

    def __init__(self, *flags):
        super().__init__(checkpoints.small(), *flags, ready=False)

    def __enter__(self):
        server = super().__enter__()
        server.log.wait_for(r"\bready\b")
        return server


def test_tls(certificates):
    with TlsServer(*certificates.flags()) as server:
        assert generate(server.address, certificates.authority) == 2
        assert generate(server.address, trustme.CA()) == grpc.StatusCode.UNAVAILABLE
        with Client(server.address, timeout=5) as plain, pytest.raises(RpcError) as error:
            plain.generate(PROMPT, max_tokens=1)
        assert error.value.code == grpc.StatusCode.UNAVAILABLE


def test_mutual_tls(certificates):
    unknown = trustme.CA()
    yesterday = datetime.datetime.now() - datetime.timedelta(days=1)
    rows = {"none": (None, grpc.StatusCode.UNAVAILABLE),
            "of another authority": (unknown.issue_cert("a"), grpc.StatusCode.UNAVAILABLE),
            "expired": (certificates.authority.issue_cert("a", not_after=yesterday),
                        grpc.StatusCode.UNAVAILABLE),
            "good": (certificates.authority.issue_cert("a"), 2)}
    with TlsServer(*certificates.flags(mutual=True)) as server:
        for name, (leaf, expected) in rows.items():
            assert generate(server.address, certificates.authority, leaf) == expected, name


def test_certificates_are_rotated_under_load(certificates):
    """Connections that stand go on, new ones get the new certificate, and no call fails."""
    old, new = certificates.authority, trustme.CA()
    both = grpc.ssl_channel_credentials(old.cert_pem.bytes() + new.cert_pem.bytes())
    stop = threading.Event()
    answers = collections.Counter()

    def call(channel):
        try:
            completion = Client(channel=channel, timeout=20).generate(
                PROMPT, max_tokens=2, temperature=0, ignore_eos=True).completions[0]
            answers[len(completion.tokens)] += 1
        except RpcError as error:
            answers[error.code] += 1

    def standing():
        with grpc.secure_channel(address, both, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            while not stop.is_set():
                call(channel)

    def reconnecting():
        while not stop.is_set():
            with grpc.secure_channel(address, both, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                call(channel)

    with TlsServer(*certificates.flags()) as server:
        address = server.address
        threads = [threading.Thread(target=each) for each in (standing, standing, reconnecting, reconnecting)]
        for thread in threads:
            thread.start()
        try:
            assert generate(address, old) == 2
            certificates.issue(new)
            deadline = time.monotonic() + 30
            while generate(address, new) != 2:
                assert time.monotonic() < deadline, "the new certificate was never used"
            assert generate(address, old) == grpc.StatusCode.UNAVAILABLE
            seen = sum(answers.values())
            while sum(answers.values()) < seen + 50:
                assert time.monotonic() < deadline + 30, answers
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert answers.keys() == {2}, f"calls failed: {answers}"
        assert sum(answers.values()) > 50


def test_files_that_cannot_serve(certificates, tmp_path):
    for name in ("other", "expired"):
        (tmp_path / name).mkdir()
    other, old = Certificates(tmp_path / "other"), Certificates(tmp_path / "expired")
    old.issue(old.authority, not_after=datetime.datetime.now() - datetime.timedelta(days=1))
    text = tmp_path / "text"
    text.write_text("no PEM")
    good = certificates
    rows = {
        "no key": ([f"--tls_certificate={good.certificate}"], "needs both"),
        "a client's authority alone": ([f"--tls_client_ca={good.client_ca}"], "needs both"),
        "no file": ([f"--tls_certificate={tmp_path}/none", f"--tls_private_key={good.key}"],
                    "none: cannot be read"),
        "no certificate": ([f"--tls_certificate={text}", f"--tls_private_key={good.key}"],
                           "text: holds no certificate"),
        "no private key": ([f"--tls_certificate={good.certificate}", f"--tls_private_key={text}"],
                           "text: holds no private key"),
        "another's key": ([f"--tls_certificate={good.certificate}", f"--tls_private_key={other.key}"],
                          "is not the key of the certificate"),
        "expired": ([f"--tls_certificate={old.certificate}", f"--tls_private_key={old.key}"],
                    "the certificate has expired"),
        "no authority": (good.flags() + [f"--tls_client_ca={text}"], "holds no certificate"),
    }
    for name, (flags, message) in rows.items():
        arguments = [f"--model={checkpoints.small()}", "--grpc_address=127.0.0.1:0",
                     "--metrics_address=127.0.0.1:0", "--log_level=error", *flags]
        code, _, err = run(*arguments)
        assert code == 2, f"{name}: {err}"
        assert err.startswith("ddl_server: ") and message in err and err.count("\n") == 1, err
        assert run("--check", *arguments) == (code, "", err), name


def test_connections_grow_old():
    """A connection is closed gracefully (GOAWAY) after a second; calls go on over the next one."""
    with Server(checkpoints.small(), "--max_connection_age=1s") as server:
        deadline = time.monotonic() + 3
        calls = 0
        while time.monotonic() < deadline:
            calls += len(server.client.generate(PROMPT, max_tokens=1).completions)
        assert calls > 10
