"""The way to an endpoint: TCP, and TLS where it is asked for. Whom we trust, who we are, and when a password is readable for
whoever is on the way."""

import contextlib
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from svc.etcd.errors import (
    CHECK_AUTHORITY,
    CHECK_ENDPOINT,
    CHECK_FILES,
    CHECK_TLS,
    MORE_FILES,
    MORE_THREADS,
    Trouble,
)
from svc.settings import Endpoint, Settings, printable

T = TypeVar("T")


async def stream_to(address: str, endpoint: Endpoint, context: ssl.SSLContext | None) -> trio.abc.Stream:
    """A stream to one address of the endpoint's, on which nothing has been said yet. No bound of its own. Raises `Trouble`."""
    try:
        plain = await trio.open_tcp_stream(address, endpoint.port)
    except OSError as error:
        raise _trouble(error) from None
    if context is None:
        return plain
    stream = trio.SSLStream(plain, context, server_hostname=endpoint.host, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise tls_trouble(error.__cause__) or Trouble("the connection broke in the TLS handshake", CHECK_TLS) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def tls_trouble(error: BaseException | None) -> Trouble | None:
    """What an error of TLS means; None: it is none."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Trouble(f"certificate verify failed: {printable(error.verify_message)}", CHECK_AUTHORITY)
    if isinstance(error, ssl.SSLError):
        return Trouble(f"TLS: {printable(str(error.reason or error)).lower().replace('_', ' ')}", CHECK_TLS)
    return None


async def addresses_of(host: str) -> list[str]:
    """As numbers, in their order. Raises `Trouble`."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    try:
        found = await _in_a_thread(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(socket.getnameinfo(address, socket.NI_NUMERICHOST)[0] for *_, address in found))
    except UnicodeError:  # no name that could be looked up
        raise Trouble("no such host", CHECK_ENDPOINT) from None
    except OSError as error:
        raise _trouble(error) from None


async def _in_a_thread(work: Callable[[], T]) -> T:
    """What may hang, in the resolver or in a file system, and is left to itself when our time is over. Raises `Trouble` when the
    system gives us no thread."""
    # A limiter of this call's own. Trio's default one may be full, which must not delay the switch; and one for all calls would
    # be shared by two event loops, the service's and the registration's.
    try:
        return await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True)
    except RuntimeError as error:  # Python's own, for what the system refuses
        raise Trouble(str(error), MORE_THREADS) from None


def _trouble(error: BaseException) -> Trouble:
    """The first of the errors that a failed connection consists of, in the system's words."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, OSError) and error.strerror is not None:
            remedy = MORE_FILES if error.errno in (errno.EMFILE, errno.ENFILE) else CHECK_ENDPOINT
            return Trouble(error.strerror, remedy)
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return Trouble(str(error), CHECK_ENDPOINT)


async def context_of(settings: Settings) -> ssl.SSLContext:
    """Whom we trust and who we are, from the files that the settings name; read anew each time, because certificates are renewed
    under a running service. Raises `Trouble`."""
    authority, key, certificate = settings.etcd_ca_cert, settings.etcd_key, settings.etcd_cert

    def read() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the certificate and the host's name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if trusted := Path(authority).read_bytes() if authority else _system_authorities():
            context.load_verify_locations(cadata=trusted.decode("ascii", "replace"))
        if certificate:
            for path in (certificate, key or certificate):  # the context's own error would not say which
                Path(path).open("rb").close()
            context.load_cert_chain(
                certificate, key, password=""
            )  # else it asks the terminal for the one of an encrypted key
        return context

    try:
        return await _in_a_thread(read)
    except ssl.SSLError as error:
        raise Trouble(f"the certificates cannot be used: {printable(str(error))}", CHECK_FILES) from None
    except OSError as error:
        raise Trouble(f"cannot read {error.filename}: {error.strerror}", CHECK_FILES) from None


def _system_authorities() -> bytes | None:
    """The certificates that this machine trusts, where OpenSSL looks for them (so `SSL_CERT_FILE` and `SSL_CERT_DIR` count); None
    when there are none."""
    places = ssl.get_default_verify_paths()
    if places.cafile:
        return Path(places.cafile).read_bytes()
    found: dict[bytes, None] = {}  # each once, in their order
    for path in (
        sorted(Path(places.capath).glob("*.[0-9]")) if places.capath else ()
    ):  # OpenSSL's names: a hash, a number
        with contextlib.suppress(OSError):
            found[path.read_bytes()] = None
    return b"\n".join(found) or None


def password_in_the_open(settings: Settings) -> list[str]:
    """The hosts to which the password goes in clear text, over a network."""
    if settings.etcd_password is None or settings.etcd_ca_cert is not None:
        return []
    return [host for host, _, tls in settings.etcd_endpoints if not tls and not _is_this_machine(host)]


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
