"""TLS towards etcd: whom we trust, who we are, and when a password is readable for whoever is on the way."""

import contextlib
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import trio

from svc.etcd.channel import Trouble, grpc
from svc.settings import Settings


async def credentials(settings: Settings) -> Any:
    """Those of a TLS channel, from the files that the settings name; read anew each time, because certificates are renewed under
    a running service. Raises `Trouble`."""
    authority, key, certificate = settings.etcd_ca_cert, settings.etcd_key, settings.etcd_cert

    def read() -> tuple[bytes | None, bytes | None, bytes | None]:
        return (
            Path(authority).read_bytes() if authority else _system_authorities(),
            Path(key).read_bytes() if key else None,
            Path(certificate).read_bytes() if certificate else None,
        )

    # A limiter of this call's own. Trio's default one may be full, which must not delay the switch; and one for all calls would
    # be shared by two event loops, the service's and the registration's.
    try:
        return grpc.ssl_channel_credentials(*await trio.to_thread.run_sync(read, limiter=trio.CapacityLimiter(1)))
    except OSError as error:
        raise Trouble(
            f"cannot read {error.filename}: {error.strerror}", "Check ETCD_CA_CERT, ETCD_CERT and ETCD_KEY."
        ) from None


def _system_authorities() -> bytes | None:
    """The certificates that this machine trusts, where OpenSSL looks for them (so `SSL_CERT_FILE` and `SSL_CERT_DIR` count); None
    when there are none: then gRPC takes those that it brings along, which know no authority that an operator has added."""
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
