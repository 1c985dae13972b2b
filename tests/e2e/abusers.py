"""Clients that do what they should not, in a process of their own.

    python abusers.py KIND ADDRESS [KEY, or FOLDER with the TLS files ca.crt, client.crt, client.key]

prints a line once it has begun, goes on until stdin ends, then prints what became of its attempts: {outcome: count}.
"""

import collections
import json
import pathlib
import socket
import struct
import sys
import threading

import grpc

from ddl_client import Client, RpcError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_HEADERS = 1, 4
THREADS = 4
IDLE_CONNECTIONS = 2000
LONG_MESSAGE = 100_000_000
PINGS = 100

stop = threading.Event()
outcomes = collections.Counter()
begun = threading.Event()


def count(outcome):
    outcomes[outcome] += 1
    begun.set()


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Http2:
    """Just enough of a connection without TLS to misuse one."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self._buffer = b""
        self.socket.sendall(PREFACE + frame(SETTINGS))

    def receive(self):
        """The next frame: (kind, flags, stream, payload); OSError or None at the end."""
        while len(self._buffer) < 9 or len(self._buffer) < 9 + self._length():
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._buffer += data
        length, kind, flags = self._length(), self._buffer[3], self._buffer[4]
        stream, payload = struct.unpack(">I", self._buffer[5:9])[0], self._buffer[9:9 + length]
        self._buffer = self._buffer[9 + length:]
        if kind == SETTINGS and flags != ACK:
            self.socket.sendall(frame(SETTINGS, ACK))
        elif kind == PING and flags != ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        return kind, flags, stream, payload

    def _length(self):
        return int.from_bytes(self._buffer[:3], "big")

    def until_closed(self):
        """The text of the GOAWAY by which the connection ended; "closed" without one."""
        text = "closed"
        try:
            while (received := self.receive()) is not None:
                if received[0] == GOAWAY:
                    text = received[3][8:].decode()
        except OSError:
            pass
        self.socket.close()
        return text


def call(address, **options):
    """Calls over one connection, each refused."""
    with Client(address, timeout=60, **options) as client:
        while not stop.is_set():
            try:
                client.generate([1, 2, 3], max_tokens=1)
                count("OK")
            except RpcError as error:
                count(error.code.name)


def no_key(address):
    call(address)


def wrong_key(address):
    call(address, api_key="wrong")


def expired_certificate(address, folder):
    ca, certificate, key = ((pathlib.Path(folder) / name).read_bytes()
                            for name in ("ca.crt", "client.crt", "client.key"))
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    while not stop.is_set():
        with grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                Client(channel=channel, timeout=20).list_models()
                count("OK")
            except RpcError as error:
                count(error.code.name)


def long_message(address, key=None):
    """One a second: about what a network of 1 Gbit/s carries."""
    texts = ["a" * LONG_MESSAGE]
    with Client(address, timeout=60, api_key=key) as client:
        while not stop.is_set():
            try:
                client.tokenize(texts)
                count("OK")
            except RpcError as error:
                count(error.code.name)
            stop.wait(1)


def long_message_without_key(address):
    long_message(address)


def endless_message(address):
    """Says that a message is long, and sends all of it but the last byte."""
    headers = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in [
            (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
            (b":path", b"/ddl.v1.InferenceService/Tokenize"), (b"te", b"trailers"),
            (b"content-type", b"application/grpc")])
    while not stop.is_set():
        connection = Http2(address)
        stream_window, connection_window, acknowledged, sent = 65535, 65535, False, 0
        left = b"\0" + struct.pack(">I", LONG_MESSAGE)
        connection.socket.sendall(frame(HEADERS, END_HEADERS, 1, headers))
        outcome = None
        try:
            while outcome is None:
                window = min(stream_window, connection_window, 16384, LONG_MESSAGE - 1 - sent)
                if acknowledged and window > 0:
                    payload = (left + b"a" * window)[:window]
                    left = b""
                    connection.socket.sendall(frame(DATA, 0, 1, payload))
                    sent += window
                    stream_window -= window
                    connection_window -= window
                    continue
                begun.set()
                connection.socket.settimeout(0.2 if sent == LONG_MESSAGE - 1 else 30)
                try:
                    received = connection.receive()
                except TimeoutError:
                    if stop.is_set():
                        outcome = "held"
                    continue
                match received:
                    case None:
                        outcome = "closed"
                    case (kind, _, _, payload) if kind == SETTINGS and payload:
                        acknowledged = True
                        for i in range(0, len(payload), 6):
                            name, value = struct.unpack(">HI", payload[i:i + 6])
                            if name == 4:
                                stream_window += value - 65535
                    case (kind, _, stream, payload) if kind == WINDOW_UPDATE:
                        if stream:
                            stream_window += int.from_bytes(payload, "big")
                        else:
                            connection_window += int.from_bytes(payload, "big")
                    case (kind, _, _, payload) if kind == HEADERS:
                        outcome = "refused"  # the status, before the message was there
                    case (kind, _, _, payload) if kind == RST_STREAM:
                        outcome = "reset"
                    case (kind, _, _, payload) if kind == GOAWAY:
                        outcome = "gone away"
        except OSError:
            outcome = "closed"
        connection.socket.close()
        count(outcome)


def idle(address):
    """As many connections as it can get, half of them speaking HTTP/2; each gets only one chance."""
    host, port = address.rsplit(":", 1)
    connections = []
    for i in range(IDLE_CONNECTIONS):
        connections.append(socket.create_connection((host, int(port)), timeout=30))
        if i % 2:
            try:
                connections[-1].sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK))
            except OSError:
                pass  # closed already
    begun.set()
    for connection in connections:
        connection.settimeout(120)
        data = b""
        try:
            while more := connection.recv(1 << 16):
                data += more
        except TimeoutError:
            count("still open")
            continue
        except OSError:
            pass
        count("idle" if b"enter idle" in data or b"max_idle" in data else
              "no settings" if data else "refused")


def pings(address):
    """Many at once on one connection after the other, without a pause: a client of gRPC would wait a second."""
    while not stop.is_set():
        connection = Http2(address)
        try:
            connection.socket.sendall(frame(PING, 0, 0, b"12345678") * PINGS)
        except OSError:
            pass
        count(connection.until_closed())


def pings_unheard(address):
    """The same by who waits for no answer."""
    while not stop.is_set():
        try:
            connection = Http2(address)
            connection.socket.sendall(frame(PING, 0, 0, b"12345678") * PINGS)
            connection.socket.close()
            count("sent")
        except OSError:
            count("closed")


KINDS = {each.__name__: each for each in (no_key, wrong_key, expired_certificate, long_message,
                                          long_message_without_key, endless_message, idle, pings,
                                          pings_unheard)}


def main():
    kind, *arguments = sys.argv[1:]
    threads = [threading.Thread(target=KINDS[kind], args=arguments)
               for _ in range(1 if kind.startswith(("idle", "long_message")) else THREADS)]
    for thread in threads:
        thread.start()
    begun.wait()
    print("begun", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
