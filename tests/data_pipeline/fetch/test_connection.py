"""Connections: to the addresses that were checked, within the time, with everybody's TLS; or through a proxy that was asked for."""

import contextlib
import socket
import socketserver
import ssl
import subprocess
import threading
import time

import pytest

from data_pipeline.fetch.connection import _tls, connect_to_one, in_turns, proxy_of, read_proxy
from data_pipeline.fetch.image import fetch_image
from data_pipeline.fetch.limits import Clock, Limits
from data_pipeline.fetch.urls import parse_url
from data_pipeline.pictures.headers import FetchError
from tests.worlds.strangers.hostile_server import PICTURE, HostileServer, answer, running

pytestmark = pytest.mark.timeout(60)
NAME = "pictures.example"


def entry(address: str, port: int, family: int = socket.AF_INET) -> tuple:
    return family, socket.SOCK_STREAM, 6, "", (address, port) if family == socket.AF_INET else (address, port, 0, 0)


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@contextlib.contextmanager
def silent_address():
    """(address, port) whose queue is full: connecting to it goes on for minutes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.2", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.1)
        yield listener.getsockname()


def refusing_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_the_next_address_is_tried_beside_a_silent_one(server):
    with silent_address() as silent:
        start = time.monotonic()
        with connect_to_one([entry(*silent), entry(*silent), entry("127.0.0.1", server.port)], Clock(5)) as connection:
            assert connection.getpeername() == ("127.0.0.1", server.port)
        assert 0.45 < time.monotonic() - start < 4, "a quarter of a second for each before it"


def test_the_next_address_is_tried_at_once_after_one_that_refuses(server):
    start = time.monotonic()
    with connect_to_one([entry("127.0.0.1", refusing_port())] * 20 + [entry("127.0.0.1", server.port)], Clock(20)) as connection:
        assert connection.getpeername() == ("127.0.0.1", server.port)
    assert time.monotonic() - start < 2.5, "a quarter of a second for each would be five"


def test_a_family_that_this_machine_lacks_is_no_end(server):
    unroutable = [entry("2001:db8::1", 80, socket.AF_INET6)] * 3
    with connect_to_one([*unroutable, entry("127.0.0.1", server.port)], Clock(5)) as connection:
        assert connection.getpeername() == ("127.0.0.1", server.port)


def test_addresses_that_all_fail_or_are_silent():
    with pytest.raises(FetchError, match="connection failed"):
        connect_to_one([entry("127.0.0.1", refusing_port())] * 2, Clock(5))
    with pytest.raises(FetchError, match="connection failed"):
        connect_to_one([], Clock(5))
    with silent_address() as silent:
        start = time.monotonic()
        with pytest.raises(FetchError, match="timeout"):
            connect_to_one([entry(*silent)] * 2, Clock(1.5))
        assert 1.45 < time.monotonic() - start < 2.9, "together, not each"


def test_families_take_turns():
    four = [entry(f"1.1.1.{number}", 80) for number in range(3)]
    six = [entry(f"2600::{number}", 80, socket.AF_INET6) for number in range(2)]
    assert in_turns([*six, *four]) == [six[0], four[0], six[1], four[1], four[2]]
    assert in_turns(four) == four


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(key, certificate) for NAME, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN={NAME}"
    subprocess.run([*command.split(), "-addext", f"subjectAltName=DNS:{NAME}"], cwd=folder, check=True, capture_output=True)
    return folder / "key", folder / "cert"


class SecureServer(HostileServer):
    """The hostile server behind TLS; `names` records what clients asked for (SNI)."""

    def __init__(self, certificate):
        super().__init__()
        self.names = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate[1], certificate[0])
        self.context.sni_callback = lambda connection, name, context: self.names.append(name)

    def finish_request(self, request, client_address) -> None:
        request.settimeout(10)
        with contextlib.suppress(OSError), self.context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)


@pytest.fixture
def secure(certificate, monkeypatch):
    """A server that every name leads to, at whatever port, and whose certificate is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    _tls.cache_clear()
    with SecureServer(certificate) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [entry("127.0.0.1", server.port)])
        yield server
        server.ending.set()
        server.shutdown()
    _tls.cache_clear()


def got(url: str, **changes):
    host = parse_url(url).place
    body, reason = fetch_image(url, Limits(**{"timeout": 5, "retries": 0, "allowed_hosts": frozenset({host})} | changes))
    return reason if body is None else bytes(body.read())


@pytest.mark.parametrize(
    ("authority", "host"),
    [(NAME, NAME), (f"{NAME}:443", NAME), (f"{NAME}:8443", f"{NAME}:8443"), (f"{NAME}.", NAME), ("PICTURES.Example", NAME)],
)
def test_tls_by_the_name_while_the_address_is_given(secure, authority, host):
    assert got(f"https://{authority}/ok/a?X-Amz-SignedHeaders=host") == PICTURE
    assert secure.requests[-1].split("\r\n")[:2] == ["GET /ok/a?X-Amz-SignedHeaders=host HTTP/1.1", f"Host: {host}"]
    assert secure.names == [NAME]


def test_certificates_are_checked(secure, monkeypatch):
    assert got("https://other.example/ok") == "tls failed"
    assert got("https://127.0.0.1/ok") == "tls failed"
    monkeypatch.delenv("SSL_CERT_FILE")
    _tls.cache_clear()
    assert got(f"https://{NAME}/ok") == "tls failed"
    assert secure.requests == []


def test_large_and_slow_answers_over_tls(secure):
    size = 3 << 20
    secure.answers["large"] = answer(PICTURE + bytes(size - len(PICTURE)))
    assert len(got(f"https://{NAME}/large", timeout=20)) == size
    start = time.monotonic()
    assert [got(f"https://{NAME}/{name}", timeout=0.7) for name in ("drip", "header-drip", "silent")] == ["timeout"] * 3
    assert time.monotonic() - start < 5


def test_who_does_not_speak_tls(server, monkeypatch):
    """A handshake that does not go on, one that comes byte by byte, and an answer in the clear."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [entry("127.0.0.1", listener.getsockname()[1])])
    speak = threading.Event()

    def serve() -> None:
        for number in range(3):
            connection = listener.accept()[0]
            with connection, contextlib.suppress(OSError):
                for byte in (b"", b"\x16\x03\x03\x3f\xff" * 9, b"HTTP/1.1 400 Bad Request\r\n\r\n")[number]:
                    connection.sendall(bytes([byte]))
                    if number == 1 and speak.wait(0.1):
                        break
                connection.recv(1 << 16)
                while connection.recv(1 << 16):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        start = time.monotonic()
        assert [got(f"https://{NAME}/", timeout=0.6) for _ in range(2)] == ["timeout"] * 2
        assert time.monotonic() - start < 2.5
        speak.set()
        assert got(f"https://{NAME}/", timeout=5) == "tls failed"
        thread.join(10)


class Proxy(socketserver.ThreadingTCPServer):
    """Answers plain requests with a picture, and leads CONNECT to `target`, whatever is asked for; `heads` records both."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, target: int):
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.target, self.heads = target, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet about broken connections."""


class ProxyHandler(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.request.recv(1)
        self.server.heads.append(head.decode().split("\r\n"))
        if not head.startswith(b"CONNECT"):
            self.request.sendall(answer(PICTURE))
            return
        with socket.create_connection(("127.0.0.1", self.server.target)) as other:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\nBroken line\r\n\r\n")
            threading.Thread(target=self.copy, args=(other, self.request), daemon=True).start()
            self.copy(self.request, other)

    @staticmethod
    def copy(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxy_to(port: int):
    with Proxy(port) as proxy:
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield proxy
        proxy.shutdown()


def test_through_a_proxy_that_was_asked_for(server):
    with proxy_to(server.port) as proxy:
        proxies = {"http": proxy.url.replace("//", "//me:p%40ss@")}
        found = got("http://pictures.invalid:80/a b?c", proxies=proxies, allowed_hosts=frozenset())
        assert found == PICTURE
        head = proxy.heads[-1]
        assert head[:2] == ["GET http://pictures.invalid/a%20b?c HTTP/1.1", "Host: pictures.invalid"]
        assert "Proxy-Authorization: Basic bWU6cEBzcw==".lower() in [line.lower() for line in head]
        for host in ("127.0.0.1", "2130706433", "10.0.0.1", "[::1]", "localhost", "intranet.local"):
            assert got(f"http://{host}/a", proxies=proxies, allowed_hosts=frozenset()) == "private address refused"
        assert len(proxy.heads) == 1
        assert got(server.url("ok"), proxies=proxies | {"no": "127.0.0.1"}) == PICTURE
        assert len(proxy.heads) == 1, "past it"


def test_through_a_tunnel(certificate, secure, monkeypatch):
    monkeypatch.undo()  # names are the proxy's to find
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    with proxy_to(secure.port) as proxy:
        found = got(f"https://{NAME}/ok", proxies={"all": proxy.url}, allowed_hosts=frozenset())
        assert found == PICTURE
        assert proxy.heads[-1][0].startswith(f"CONNECT {NAME}:443 HTTP/1.")
        assert secure.requests[-1].split("\r\n")[:2] == ["GET /ok HTTP/1.1", f"Host: {NAME}"]
        assert got("https://other.example/ok", proxies={"https": proxy.url}, allowed_hosts=frozenset()) == "tls failed"


def test_a_proxy_keeps_to_the_time():
    """One that says nothing, and one that drips."""
    ending = threading.Event()

    def serve() -> None:
        for number in range(3):
            connection = listener.accept()[0]
            with contextlib.suppress(OSError):
                connection.recv(1 << 16)
                while number and not ending.wait(0.1):
                    connection.sendall(b"H")
            kept.append(connection)

    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        proxies = {"all": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        start = time.monotonic()
        for url in ("https://a.invalid/", "https://a.invalid/", "http://a.invalid/"):
            assert got(url, timeout=0.6, proxies=proxies) == "timeout"
        assert time.monotonic() - start < 3
        ending.set()


@pytest.mark.parametrize("host", [f"{'a' * 64}.invalid", ".invalid", "a..invalid"])
def test_names_that_cannot_be_asked_for(server, host):
    with proxy_to(server.port) as proxy:
        for url in (f"http://{host}/ok", f"https://{host}/ok"):
            assert got(url) == "name not found"
        assert got(f"https://{host}/ok", proxies={"all": proxy.url}) in ("malformed url", "tls failed")


def test_which_proxy():
    proxies = {"http": "http://one:3128", "all": "two:3129", "no": "localhost,.inside.example,10.0.0.1:8080"}
    table = {
        "http://a.example/": ("one", 3128),
        "https://a.example/": ("two", 3129),
        "http://b.inside.example/": None,
        "http://localhost/": None,
        "http://10.0.0.1:8080/": None,
        "http://10.0.0.1/": ("one", 3128),
    }
    found = {url: proxy_of(parse_url(url), proxies) for url in table}
    assert {url: proxy and (proxy.host, proxy.port) for url, proxy in found.items()} == table
    assert proxy_of(parse_url("http://a.example/"), {}) is None
    for wrong in ("socks5://a:1080", "https://a:3128", "http://", "http://a:b"):
        with pytest.raises(ValueError):
            read_proxy(wrong)
