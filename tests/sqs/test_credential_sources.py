"""Each source of AWS credentials, against a fake that is a real server, and every way in which it may fail: the border's own
error, the true cause in it, and no secret."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from svc.consumer.queue import QueueError, QueueMisconfigured, QueueUnavailable
from svc.sqs.credential_sources import Keys, Role, look
from tests.aws_services import KEY, ROLE, SECRET, TOKEN, Aws, aws, date

SSO_PROFILE = """
[profile sso]
sso_start_url = https://start.example
sso_region = us-east-1
sso_account_id = 123456789012
sso_role_name = orders
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Aws]:
    with aws() as fake:
        yield fake


@dataclass
class Place:
    """A machine: the fake's services, a home directory, this process's environment."""

    aws: Aws
    home: Path
    setenv: Callable[[str, str], None]

    def use(self, source: str) -> None:
        for name, value in self.aws.environ(source).items():
            self.setenv(name, value)

    def file(self, name: str, text: str) -> str:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def program(self, text: str, mode: int = 0o755) -> str:
        path = self.home / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return str(path)

    def profile(self, **items: str) -> None:
        lines = "".join(f"{name} = {value}\n" for name, value in items.items())
        self.setenv("AWS_CONFIG_FILE", self.file("config", f"[default]\n{lines}"))


@pytest.fixture
def place(server: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """With nothing that gives credentials, yet."""
    server.answers.clear()
    server.requests.clear()
    server.lifetime = 3600.0
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Place(server, tmp_path, monkeypatch.setenv)


def printed(**changed: object) -> str:
    """What a credential_process prints."""
    body: dict[str, object] = {
        "Version": 1, "AccessKeyId": KEY, "SecretAccessKey": SECRET, "SessionToken": TOKEN, "Expiration": date(3600)
    }  # fmt: skip
    return json.dumps({name: value for name, value in (body | changed).items() if value is not None})


def web_identity(place: Place, token: str | None = "jwt-of-a-pod") -> None:
    place.use("sts")
    path = place.home / "token"
    if token is not None:
        path.write_text(token)
    place.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(path))


# -- what works --


def test_imds_version_2(place: Place) -> None:
    place.use("imds")
    found = look("us-east-1")
    assert found.keys == Keys(f"{KEY}3", SECRET, TOKEN)  # session, role, credentials
    assert found.source == "the instance metadata service"
    assert [request.method for request in place.aws.of("imds")] == ["PUT", "GET", "GET"]


def test_container_endpoint_with_a_token_from_a_file(place: Place) -> None:
    """EKS Pod Identity, ECS."""
    place.use("container")
    place.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", place.file("token", "pod-token"))
    found = look("us-east-1")
    assert found.keys == Keys(f"{KEY}1", SECRET, TOKEN)
    assert found.expires is not None
    assert place.aws.of("container")[0].headers["authorization"] == "pod-token"


def test_container_token_with_a_line_break(place: Place) -> None:
    place.use("container")
    place.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod-token\r\n")
    look("us-east-1")
    assert place.aws.of("container")[0].headers["authorization"] == "pod-token"


def test_web_identity_whose_file_ends_in_a_line_break(place: Place) -> None:
    web_identity(place, "jwt-of-the-pod\n")
    found = look("us-east-1")
    assert found.keys == Keys(f"{KEY}1", SECRET, TOKEN)
    [asked] = place.aws.of("sts")
    assert asked.form["WebIdentityToken"] == "jwt-of-the-pod"
    assert asked.form["RoleArn"] == ROLE


def test_credential_process(place: Place) -> None:
    place.profile(credential_process=place.program(f"echo '{printed()}'"))
    assert look("us-east-1").keys == Keys(KEY, SECRET, TOKEN)


LOOKS = """
import sys
from svc.consumer.queue import QueueError
from svc.sqs.credential_sources import look
for _ in sys.stdin:
    try:
        print(look("us-east-1").keys.access_key, flush=True)
    except QueueError as error:
        print(type(error).__name__, error, flush=True)
"""


def test_an_sso_login_that_is_renewed_is_taken_up(place: Place) -> None:
    """In a process of its own: botocore looks for the home directory when it is imported."""
    environ = {
        **os.environ, "AWS_CONFIG_FILE": place.file("config", SSO_PROFILE), "AWS_PROFILE": "sso",
        "AWS_ENDPOINT_URL_SSO": place.aws.url,
    }  # fmt: skip
    login = f".aws/sso/cache/{hashlib.sha1(b'https://start.example').hexdigest()}.json"
    with subprocess.Popen(
        [sys.executable, "-c", LOOKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environ
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def looked() -> str:
            print(file=child.stdin)
            return str(child.stdout.readline()) if child.stdout else ""

        assert "aws sso login" in looked()
        place.file(login, json.dumps({"accessToken": "sso-token", "expiresAt": date(-60)}))
        assert "has expired" in looked()
        place.file(login, json.dumps({"accessToken": "sso-token", "expiresAt": date(3600)}))
        assert looked() == f"{KEY}1\n"
        place.aws.answers["sso"] = (401, place.aws.json({"message": "Session token not found or invalid"}))
        assert "aws sso login" in looked()


def test_a_role_on_top_of_the_profiles_user(place: Place) -> None:
    place.setenv("AWS_ENDPOINT_URL_STS", place.aws.url)
    place.setenv(
        "AWS_SHARED_CREDENTIALS_FILE", place.file("c", f"[u]\naws_access_key_id={KEY}u\naws_secret_access_key=x\n")
    )
    place.profile(role_arn=ROLE, source_profile="u")
    assert look("us-east-1").keys.access_key == f"{KEY}1"
    assert place.aws.of("sts")[0].key == f"{KEY}u"


def test_a_role_for_the_queue_alone(place: Place) -> None:
    place.use("env")
    place.setenv("AWS_ENDPOINT_URL_STS", place.aws.url)
    found = look("eu-central-1", Role(ROLE, "svc", "external"))
    assert found.keys == Keys(f"{KEY}1", SECRET, TOKEN)
    assert found.expires is not None
    [asked] = place.aws.of("sts")
    assert (asked.key, asked.form["RoleArn"], asked.form["ExternalId"]) == (KEY, ROLE, "external")
    assert "/eu-central-1/sts/" in asked.headers["authorization"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " "])
def test_a_line_break_at_the_end_of_a_key_is_dropped_and_told(place: Place, end: str) -> None:
    place.setenv("AWS_ACCESS_KEY_ID", KEY + end)
    place.setenv("AWS_SECRET_ACCESS_KEY", SECRET + end)
    place.setenv("AWS_SESSION_TOKEN", TOKEN + end)
    found = look("us-east-1")
    assert found.keys == Keys(KEY, SECRET, TOKEN)
    assert len(found.notes) == 3
    assert "access key id" in found.notes[0]
    assert "AWS_ACCESS_KEY_ID" in found.notes[0]
    assert SECRET not in repr(found)


# -- what does not: how the machine is, what is said of it --


def set_up(*sources: str, **environ: str) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        for source in sources:
            place.use(source)
        for name, value in environ.items():
            place.setenv(name, value)

    return prepare


def answering(source: str, answer: Callable[[Place], object]) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        if source == "sts":
            web_identity(place)
        else:
            place.use(source)
        place.aws.answers[source] = answer(place)  # type: ignore[assignment]

    return prepare


def process(text: str, mode: int = 0o755) -> Callable[[Place], None]:
    return lambda place: place.profile(credential_process=place.program(text, mode))


def lacking(key: str) -> Callable[[Place], object]:
    return lambda place: place.aws.json({k: v for k, v in place.aws.given().items() if k != key})


PAGE = b"<html>Sign in</html>"

CASES: dict[str, tuple[Callable[[Place], None], type[QueueError], str]] = {
    "nothing at all": (set_up(), QueueMisconfigured, "no AWS credentials; .*AWS_EC2_METADATA_DISABLED"),
    "half of the keys": (set_up(AWS_ACCESS_KEY_ID=KEY), QueueMisconfigured, "AWS_SECRET_ACCESS_KEY is missing"),
    "a blank within": (
        set_up(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY="se cret"), QueueMisconfigured, "secret access key .* holds a blank"
    ),
    "a line break within": (
        set_up(AWS_ACCESS_KEY_ID="AK\nIA", AWS_SECRET_ACCESS_KEY=SECRET), QueueMisconfigured, "access key id .* a line break"
    ),
    "an unknown profile": (set_up(AWS_PROFILE="nobody"), QueueMisconfigured, "no profile 'nobody'.*AWS_PROFILE"),
    "a config file that is none": (
        lambda place: place.setenv("AWS_CONFIG_FILE", place.file("config", "what [ is this\n\x00")),
        QueueMisconfigured, "cannot be read as an AWS configuration",
    ),
    "imds is down": (
        set_up(AWS_EC2_METADATA_SERVICE_ENDPOINT="http://127.0.0.1:1", AWS_EC2_METADATA_DISABLED="false"),
        QueueUnavailable, "instance metadata service, which does not answer or has no usable role",
    ),
    "imds: no address": (
        set_up(AWS_EC2_METADATA_SERVICE_ENDPOINT="not an address", AWS_EC2_METADATA_DISABLED="false"),
        QueueError, "AWS credentials|no AWS credentials",
    ),
    "imds: a page": (answering("imds", lambda place: PAGE), QueueUnavailable, "no usable role"),
    "imds: an error in a 200": (
        answering("imds", lambda place: place.aws.json({"Code": "AssumeRoleUnauthorizedAccess", "Message": "no"})),
        QueueUnavailable, "no usable role",
    ),
    "imds: a list": (answering("imds", lambda place: b"[]"), QueueUnavailable, "metadata service|no usable role"),
    "container: past": (
        answering("container", lambda place: place.aws.json(place.aws.given() | {"Expiration": date(-60)})),
        QueueError, "",
    ),
    "container: no Token": (answering("container", lacking("Token")), QueueUnavailable, "container endpoint .* lacks Token"),
    "container: no Expiration": (answering("container", lacking("Expiration")), QueueUnavailable, "lacks Expiration"),
    "container: a date that is none": (
        answering("container", lambda place: place.aws.json(place.aws.given() | {"Expiration": "tomorrow"})),
        QueueUnavailable, "container endpoint .* cannot be read",
    ),
    "container: a number as key": (
        answering("container", lambda place: place.aws.json(place.aws.given() | {"AccessKeyId": 7})),
        QueueMisconfigured, "access key id .* is no text",
    ),
    "container: a page": (answering("container", lambda place: PAGE), QueueUnavailable, "container endpoint .* is not JSON"),
    "container: null": (answering("container", lambda place: b"null"), QueueUnavailable, "container endpoint"),
    "container: 500 with the secret": (
        answering("container", lambda place: (500, SECRET.encode())), QueueUnavailable, "answered with HTTP 500"
    ),
    "container: cut off": (answering("container", lambda place: None), QueueUnavailable, "cannot be reached"),
    "container: nobody": (
        set_up(AWS_CONTAINER_CREDENTIALS_FULL_URI="http://127.0.0.1:1/x"), QueueUnavailable, "endpoint.*cannot be reached"
    ),
    "container: a host that the SDK refuses": (
        set_up(AWS_CONTAINER_CREDENTIALS_FULL_URI="http://ann:sesame@creds.example/x"),
        QueueMisconfigured, r"'creds.example', the host of AWS_CONTAINER_CREDENTIALS_FULL_URI.*loopback.*https",
    ),
    "container: no URL": (set_up(AWS_CONTAINER_CREDENTIALS_FULL_URI="http://[::"), QueueError, "container endpoint|host"),
    "container: token file missing": (
        set_up("container", AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE="/nowhere/token"),
        QueueMisconfigured, "'/nowhere/token' of the container endpoint.*No such file",
    ),
    "web identity: no file": (lambda place: web_identity(place, None), QueueMisconfigured, "token' of the web.*No such file"),
    "web identity: a directory": (
        set_up("sts", AWS_WEB_IDENTITY_TOKEN_FILE="/tmp"), QueueMisconfigured, "'/tmp' of the web identity.*directory"
    ),
    "web identity: empty": (lambda place: web_identity(place, "\n"), QueueUnavailable, "is empty"),
    "web identity: no role": (
        lambda place: place.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", place.file("token", "jwt")), QueueMisconfigured, "AWS_ROLE_ARN"
    ),
    "web identity: too short": (lambda place: web_identity(place, "x"), QueueMisconfigured, "WebIdentityToken.*is not what"),
    "sts refuses": (
        answering("sts", lambda place: place.aws.refusal("AccessDenied", f"not authorized to perform this on {ROLE}")),
        QueueMisconfigured, f"STS refused AssumeRoleWithWebIdentity .*AccessDenied: not authorized to perform this on {ROLE}",
    ),
    "sts: its words hold the secret": (
        answering("sts", lambda place: place.aws.refusal("InvalidIdentityToken", f"token {TOKEN}{SECRET} is bad")),
        QueueMisconfigured, "InvalidIdentityToken",
    ),
    "sts breaks down": (
        answering("sts", lambda place: place.aws.refusal("InternalFailure", "x", 500)), QueueUnavailable, "STS broke down"
    ),
    "sts: a page": (answering("sts", lambda place: PAGE), QueueUnavailable, "web identity"),
    "sts: 200 and no credentials": (
        answering("sts", lambda place: b"<AssumeRoleWithWebIdentityResponse/>"), QueueUnavailable, "web identity"
    ),
    "sts is down": (
        lambda place: (web_identity(place), place.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1"))[1],
        QueueUnavailable, "http://127.0.0.1:1 cannot be reached.*web identity",
    ),
    "process: not there": (
        lambda place: place.profile(credential_process="/nowhere/program --x"), QueueMisconfigured, "/nowhere/program.*No such"
    ),
    "process: may not be run": (process("echo", 0o644), QueueMisconfigured, "credential_process.*denied"),
    "process: prints nothing": (process("true"), QueueUnavailable, "credential_process answers is not JSON"),
    "process: prints a page": (process(f"echo '{PAGE.decode()}'"), QueueUnavailable, "is not JSON"),
    "process: prints Latin-1": (process(r"printf '\351'"), QueueUnavailable, "is not JSON"),
    "process: fails": (process(f"echo {SECRET} >&2; exit 3"), QueueUnavailable, "exit code 3"),
    "process: another version": (process(f"echo '{printed(Version=2)}'"), QueueUnavailable, "another Version"),
    "process: no key": (process(f"echo '{printed(AccessKeyId=None)}'"), QueueUnavailable, "lacks AccessKeyId"),
    "process: a list": (process("echo '[]'"), QueueUnavailable, "credential_process"),
    "mfa": (
        lambda place: (
            place.use("env"),
            place.profile(role_arn=ROLE, source_profile="default", mfa_serial="arn:aws:iam::1:mfa/x"),
            place.setenv("AWS_PROFILE", "default"),
            place.file(".aws/credentials", f"[default]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n"),
        )[1],
        QueueMisconfigured, "MFA",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_source_that_fails(place: Place, case: str, caplog: pytest.LogCaptureFixture) -> None:
    prepare, kind, words = CASES[case]
    prepare(place)
    if case == "mfa":
        os.environ.pop("AWS_ACCESS_KEY_ID", None)
        os.environ.pop("AWS_SECRET_ACCESS_KEY", None)
    with suppress(QueueError) if not words else pytest.raises(kind, match=words) as caught:
        look("us-east-1")
    if words:
        text = str(caught.value)
        for secret in (SECRET, TOKEN, "sesame", "jwt"):
            assert secret not in text.replace("/token", "")
        assert "\n" not in text
        assert len(text) < 800
    assert SECRET not in caplog.text


def test_an_expired_answer_is_found_with_its_date(place: Place) -> None:
    """Whether it holds is for `credentials.py` to say: STS, the container endpoint."""
    place.aws.lifetime = -60.0
    for source in ("container", "sts"):
        place.use(source)
    assert (look("us-east-1").expires or 0) > 0
    web_identity(place)
    assert (look("us-east-1").expires or 0) > 0


# -- generated answers --

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(date(60)) | st.just(KEY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["AccessKeyId", "SecretAccessKey", "Token", "SessionToken", "Expiration", "Version", "Code"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
FULL = st.fixed_dictionaries(
    {"Version": st.just(1) | JSON, "AccessKeyId": JSON, "SecretAccessKey": JSON},
    optional={"Token": JSON, "SessionToken": JSON, "Expiration": st.just(date(60)) | JSON, "AccountId": JSON},
)
BODIES = (
    st.binary(max_size=60)
    | (JSON | FULL).map(lambda value: json.dumps(value).encode())
    | FULL.map(lambda value: json.dumps(value).encode()[:-4])
    | st.just(b"[" * 20_000)
    | st.sampled_from(
        [
            b"<a>",
            b"<ErrorResponse/>",
            b"<AssumeRoleWithWebIdentityResponse/>",
            b"<!DOCTYPE x>",
            "\udcff".encode("utf-8", "surrogatepass"),
        ]
    )
)
STATUSES = st.sampled_from([200, 200, 200, 204, 301, 400, 403, 404, 429, 500, 503])


@pytest.mark.parametrize("source", ["imds", "container", "sts", "process"])
@examples(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(status=STATUSES, body=BODIES)
def test_whatever_a_source_answers_is_credentials_or_the_borders_own_error(
    place: Place, source: str, status: int, body: bytes
) -> None:
    if source == "process":
        (place.home / "answer").write_bytes(body)
        process(f"cat {place.home}/answer")(place)
    elif source == "sts":
        web_identity(place)
    else:
        place.use(source)
    if source != "process":
        place.aws.answers[source] = (status, body) if status != 204 else (204, b"")
    try:
        found = look("us-east-1")
    except QueueError:
        return
    assert all(isinstance(part, str) for part in found.keys[:2])
    assert found.expires is None or isinstance(found.expires, float)
