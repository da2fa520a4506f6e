"""TLS on the direct road: whose certificates are trusted, for which host, and what is told when they are not."""

import datetime
import ipaddress
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from svc.sqs import pool
from svc.sqs.pool import CertificatesUnreadable, Endpoint, Network, TlsFailed

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


def certificate(folder: Path, *names: str, days: int = 1) -> tuple[Path, ssl.SSLContext]:
    """A certificate that signs itself, as a file to trust, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(one)) if one[0].isdigit() else x509.DNSName(one) for one in names
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = folder / f"{'-'.join(names)}{days}.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / f"{public.stem}.key"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(public, private)
    return public, context


async def serving(nursery: trio.Nursery, context: ssl.SSLContext, answer: bytes = OK) -> int:
    """A server that answers over TLS; returns its port."""

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        received = b""
        try:
            async for some in stream:
                received += bytes(some)
                if b"\r\n\r\n" in received:
                    received = b""
                    await stream.send_all(answer)
        except (trio.BrokenResourceError, ssl.SSLError):
            pass
        await trio.aclose_forcefully(stream)

    [listener] = await nursery.start(partial(trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1"))
    port: int = listener.transport_listener.socket.getsockname()[1]
    return port


async def asked(host: str, port: int, ca: str | None, *, times: int = 1) -> list[bytes]:
    async with pool.opened(Endpoint(host, port, tls=True), Network(ca)) as connections:
        with trio.fail_after(10):
            answers = [await connections.exchange(REQUEST, repeatable=True) for _ in range(times)]
        assert connections.idle == 1
        return [answer.body for answer in answers]


async def test_a_trusted_certificate(nursery: trio.Nursery, tmp_path: Path) -> None:
    public, context = certificate(tmp_path, "127.0.0.1", "localhost")
    port = await serving(nursery, context)
    assert await asked("127.0.0.1", port, str(public), times=3) == [b"{}"] * 3
    assert await asked("localhost", port, str(public)) == [b"{}"]


@pytest.mark.parametrize(
    ("names", "days", "trusted", "says"),
    [
        (("127.0.0.1",), 1, False, "self.signed certificate"),
        (("127.0.0.2",), 1, True, "IP address mismatch"),
        (("sqs.example.org",), 1, True, "IP address mismatch"),
        (("127.0.0.1",), -1, True, "expired"),
    ],
)
async def test_one_that_is_not(
    names: tuple[str, ...], days: int, trusted: bool, says: str, nursery: trio.Nursery, tmp_path: Path
) -> None:
    public, context = certificate(tmp_path, *names, days=days)
    other, _ = certificate(tmp_path, "other.example.org")
    port = await serving(nursery, context)
    with pytest.raises(TlsFailed, match=says):
        await asked("127.0.0.1", port, str(public if trusted else other))


async def test_a_server_that_speaks_old_tls_or_none(nursery: trio.Nursery, tmp_path: Path) -> None:
    public, _ = certificate(tmp_path, "127.0.0.1")

    def answering(first: bytes) -> Callable[[trio.SocketStream], object]:
        async def serve(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            if first:
                await stream.send_all(first)
            await stream.aclose()

        return serve

    for first in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b""):
        [listener] = await nursery.start(partial(trio.serve_tcp, answering(first), 0, host="127.0.0.1"))
        with pytest.raises(TlsFailed):
            await asked("127.0.0.1", listener.socket.getsockname()[1], str(public))


@pytest.mark.parametrize("what", ["absent", "empty", "no certificates", "a folder"])
async def test_a_bundle_that_cannot_be_read(what: str, tmp_path: Path) -> None:
    path = tmp_path / "bundle.pem"
    if what == "a folder":
        path.mkdir()
    elif what != "absent":
        path.write_text("" if what == "empty" else "not a certificate")
    with pytest.raises(CertificatesUnreadable):
        await asked("127.0.0.1", 1, str(path))
