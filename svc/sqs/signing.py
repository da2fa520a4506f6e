"""Signs requests to SQS: AWS Signature Version 4, for the one form that they have (POST to `/`, a JSON body in one piece).

botocore signs for every service and reads each header several times to do so, which is a tenth of what a call costs. What differs
from call to call here is the body, the operation and the second; the rest is made once. `tests/sqs/test_sqs_signing.py`
holds every
signature against botocore's own signer, and `aws_client.py` leaves to botocore whatever has another form.

The source is AWS's "Create a signed AWS API request" (IAM user guide). Pure: the moment is an argument. Nothing here may log or
raise anything that holds a key.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


class Keys(Protocol):
    """botocore's `ReadOnlyCredentials`."""

    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def token(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a signing key is for; it holds for a day."""

    day: str
    region: str
    service: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


class Signer:
    """For the requests of one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self._host = host(endpoint)
        self._scope: _Scope | None = None
        self._key = b""

    def headers(
        self,
        sent: Iterable[tuple[str, str]],
        body: bytes,
        *,
        keys: Keys,
        region: str,
        service: str,
        now: datetime,
    ) -> Mapping[str, str]:
        """The headers to add to those that are `sent`. `now` in UTC."""
        moment = now.strftime("%Y%m%dT%H%M%SZ")
        added = {"X-Amz-Date": moment}
        if keys.token:
            added["X-Amz-Security-Token"] = keys.token
        signed = {"host": self._host}
        for name, value in (*sent, *added.items()):
            lower = name.lower()
            # "you must include the host header, and any x-amz-* headers in the request" (ibid.)
            if lower.startswith("x-amz-") or lower == "content-type":
                signed[lower] = " ".join(value.split())
        names = sorted(signed)
        listed = ";".join(names)
        lines = "".join([f"{name}:{signed[name]}\n" for name in names])
        request = f"POST\n/\n\n{lines}\n{listed}\n{sha256(body).hexdigest()}"
        scope = _Scope(moment[:8], region, service, keys.secret_key)
        to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        signature = hmac.new(self._key_for(scope), to_sign.encode(), sha256).hexdigest()
        added["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={listed}, Signature={signature}"
        )
        return added

    def _key_for(self, scope: _Scope) -> bytes:
        if scope != self._scope:
            self._scope, self._key = scope, _key_for(scope)
        return self._key


class Form:
    """Requests to one endpoint that differ in their body, the second and the keys only: all else is made once.

    `sent` are the headers that are signed, beside those of the signature itself and Host."""

    def __init__(self, endpoint: str, sent: Sequence[tuple[str, str]], *, region: str, service: str) -> None:
        self._signed = {"host": host(endpoint)} | {name.lower(): " ".join(value.split()) for name, value in sent}
        self._region, self._service = region, service
        self._keys: Keys | None = None
        self._second = -1
        self._key = b""
        self._begin = self._to_sign = self._lines = ""
        self._body: bytes | None = None
        self._signed_lines = ""

    def lines(self, body: bytes, *, keys: Keys, second: int) -> str:
        """The header lines to add. `second`: whole seconds since 1970, UTC."""
        if second != self._second or keys is not self._keys:
            self._prepare(keys, second)
        elif body == self._body:
            return self._signed_lines  # what is signed is the same, and so is the signature
        request = f"{self._begin}{sha256(body).hexdigest()}"
        to_sign = f"{self._to_sign}{sha256(request.encode()).hexdigest()}"
        self._body = body
        self._signed_lines = f"{self._lines}{hmac.digest(self._key, to_sign.encode(), 'sha256').hex()}\r\n"
        return self._signed_lines

    def _prepare(self, keys: Keys, second: int) -> None:
        moment = datetime.fromtimestamp(second, UTC).strftime("%Y%m%dT%H%M%SZ")
        token = {"x-amz-security-token": keys.token} if keys.token else {}
        signed = {**self._signed, "x-amz-date": moment, **token}
        names = sorted(signed)
        listed = ";".join(names)
        canonical = "".join([f"{name}:{signed[name]}\n" for name in names])
        scope = _Scope(moment[:8], self._region, self._service, keys.secret_key)
        self._begin = f"POST\n/\n\n{canonical}\n{listed}\n"
        self._to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n"
        self._lines = (
            f"X-Amz-Date: {moment}\r\n"
            + (f"X-Amz-Security-Token: {keys.token}\r\n" if keys.token else "")
            + f"Authorization: AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={listed}, Signature="
        )
        if keys is not self._keys or second // 86_400 != self._second // 86_400:
            self._key = _key_for(scope)
        self._keys, self._second = keys, second


def _key_for(scope: _Scope) -> bytes:
    key = b"AWS4" + scope.secret.encode()
    for part in (scope.day, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def host(endpoint: str) -> str:
    """The Host header that a client sends to this endpoint: the port only where it is not the scheme's own."""
    parts = urlsplit(endpoint)
    name = parts.hostname or ""
    name = f"[{name}]" if ":" in name else name
    return name if parts.port in (None, _PORTS.get(parts.scheme)) else f"{name}:{parts.port}"


def can_sign(endpoint: str) -> bool:
    """Whether requests to this endpoint have the form that is signed here."""
    parts = urlsplit(endpoint)
    return parts.path in ("", "/") and not parts.query
