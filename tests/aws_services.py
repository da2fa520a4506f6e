"""What AWS credentials come from, as a real HTTP server on loopback: STS, the instance metadata service (IMDSv2), the container
endpoint, SSO's portal; and an SQS that tells with which key it was asked.

    with aws() as fake:
        fake.answers["imds"] = fake.json(…)

Each of them answers as it should until something is put into `answers`: bytes, a status with bytes, or None (the connection is
closed without a word). Every request is in `requests`.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ROLE, ASSUMED = "arn:aws:iam::123456789012:role/orders", "arn:aws:sts::123456789012:assumed-role/orders/x"

KEY, SECRET, TOKEN = "AKIAFAKEFAKEFAKE0001", "sEcReT/that+nobody/ever+may+see/in/a/log0", "tOkEn-that-nobody-may-see"
"""What the sources give, each with its own number at the end of the key."""

Answer = tuple[int, bytes] | bytes | None


def date(seconds: float) -> str:
    """An Expiration so many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Request:
    service: str
    method: str
    path: str
    headers: dict[str, str]
    body: str

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body).items()}

    @property
    def key(self) -> str:
        """The access key id that signed it."""
        found = re.search(r"Credential=([^/]+)/", self.headers.get("authorization", ""))
        return found[1] if found else ""


@dataclass
class Aws:
    url: str
    answers: dict[str, Answer] = field(default_factory=dict)
    """By service: sts, imds, container, sso, sqs."""
    requests: list[Request] = field(default_factory=list)
    lifetime: float = 3600.0
    """Seconds that credentials hold which are given out now."""
    accepted: str | None = None
    """The one access key that SQS takes; None: any."""

    def of(self, service: str) -> list[Request]:
        return [request for request in list(self.requests) if request.service == service]

    def environ(self, source: str) -> dict[str, str]:
        """The variables that lead to a source, in the place of those of the tests."""
        return {
            "imds": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.url, "AWS_EC2_METADATA_DISABLED": "false"},
            "container": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.url}/container"},
            "sts": {"AWS_ROLE_ARN": ROLE, "AWS_ENDPOINT_URL_STS": self.url},
            "env": {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
        }[source]

    def answer(self, request: Request) -> Answer:
        if request.service in self.answers:
            if request.service == "imds" and request.method == "PUT" and self.answers["imds"] is not None:
                return b"imds-session"
            return self.answers[request.service]
        number = len(self.of(request.service))
        match request.service:
            case "imds":
                if request.method == "PUT":
                    return b"imds-session"
                if request.headers.get("x-aws-ec2-metadata-token") != "imds-session":
                    return 401, b""
                return b"orders" if request.path.endswith("/") else self.json(self.given(number, code="Success"))
            case "container":
                return self.json(self.given(number))
            case "sso":
                return self.json(
                    {
                        "roleCredentials": {
                            "accessKeyId": f"{KEY}{number}", "secretAccessKey": SECRET, "sessionToken": TOKEN,
                            "expiration": int((datetime.now(UTC).timestamp() + self.lifetime) * 1000),
                        }
                    }
                )  # fmt: skip
            case "sts":
                return self.sts(request, number)
            case _:
                if self.accepted is not None and request.key != self.accepted:
                    error = {"__type": "com.amazon.coral.service#ExpiredTokenException", "message": "expired"}
                    return 403, json.dumps(error).encode()
                return self.json({"Attributes": {"QueueArn": "arn:aws:sqs:us-east-1:0:q"}})

    def given(self, number: int = 1, *, code: str | None = None) -> dict[str, str]:
        more = {"Code": code} if code else {}
        return {
            "AccessKeyId": f"{KEY}{number}", "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": date(self.lifetime), **more
        }  # fmt: skip

    def sts(self, request: Request, number: int) -> Answer:
        action = request.form["Action"]
        if action == "GetCallerIdentity":
            inner = f"<Arn>{ASSUMED}</Arn><UserId>A:x</UserId><Account>123456789012</Account>"
        else:
            inner = (
                f"<AssumedRoleUser><Arn>{ASSUMED}</Arn>"
                f"<AssumedRoleId>A:x</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>{KEY}{number}</AccessKeyId>"
                f"<SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken>"
                f"<Expiration>{date(self.lifetime)}</Expiration></Credentials>"
            )
        return self.xml(f"<{action}Response><{action}Result>{inner}</{action}Result></{action}Response>")

    @staticmethod
    def json(body: object) -> bytes:
        return json.dumps(body).encode()

    @staticmethod
    def xml(body: str) -> bytes:
        return body.replace("Response>", 'Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">', 1).encode()

    @classmethod
    def refusal(cls, code: str, text: str, status: int = 403) -> Answer:
        """STS's error answer."""
        return status, cls.xml(
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error></ErrorResponse>"
        )


def service_of(path: str, headers: dict[str, str]) -> str:
    top = urlsplit(path).path.split("/")[1]
    known = {"latest": "imds", "container": "container", "federation": "sso"}
    return known.get(top) or ("sqs" if "x-amz-target" in headers else "sts")


@contextmanager
def aws(port: int = 0) -> Iterator[Aws]:
    """The server, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0))).decode("utf-8", "replace")
            request = Request(service_of(self.path, headers), self.command, self.path, headers, body)
            fake.requests.append(request)
            answer = fake.answer(request)
            if answer is None:
                self.close_connection = True
                return
            status, content = answer if isinstance(answer, tuple) else (200, answer)
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0" if request.service == "sqs" else "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_POST = do_GET

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    fake = Aws(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
