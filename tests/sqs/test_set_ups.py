"""How a queue at AWS may be named and reached: set-ups as their users have them, what is resolved of each, and what an operator
reads where one cannot hold. Nothing here leaves this machine: what is resolved is a URL, and one request goes to a fake."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Signer

from svc.consumer.queue import QueueError
from svc.settings import BadSettings, Settings, is_aws, load, misspelled, origins, queue_address
from svc.sqs import access
from svc.sqs import queue as sqs
from svc.sqs.profile import profile
from tests.aws_services import ASSUMED, KEY, ROLE, SECRET, TOKEN, Aws, aws
from tests.sqs.test_credential_sources import Place, place, printed, server, web_identity

__all__ = ["place", "server"]  # fixtures

ACCOUNT = "123456789012"
URL = f"https://sqs.eu-central-1.amazonaws.com/{ACCOUNT}/orders"
CONFIG = """
[default]
region = eu-west-3

[profile prod]
region = sa-east-1
endpoint_url = http://all.example:1

[profile sqs]
services = local

[services local]
sqs =
  endpoint_url = http://sqs.example:9324

[profile off]
endpoint_url = http://all.example:1
ignore_configured_endpoint_urls = true
"""

# Variables → endpoint that requests go to, region, URL of the queue (the name, where SQS is asked for it).
SET_UPS: dict[str, tuple[dict[str, str], tuple[str, str, str]]] = {
    "a URL and nothing else": ({"SQS_QUEUE_URL": URL}, ("https://sqs.eu-central-1.amazonaws.com", "eu-central-1", URL)),
    "an ARN": (
        {"SQS_QUEUE_URL": f"arn:aws:sqs:eu-central-1:{ACCOUNT}:orders"},
        ("https://sqs.eu-central-1.amazonaws.com", "eu-central-1", URL),
    ),
    "an ARN as SQS_QUEUE": (
        {"SQS_QUEUE": f"arn:aws:sqs:eu-central-1:{ACCOUNT}:orders.fifo"},
        ("https://sqs.eu-central-1.amazonaws.com", "eu-central-1", URL + ".fifo"),
    ),
    "a name and a region": (
        {"SQS_QUEUE": "orders", "AWS_REGION": "eu-central-1"},
        ("https://sqs.eu-central-1.amazonaws.com", "eu-central-1", "orders"),
    ),
    "a name and a default region": (
        {"SQS_QUEUE_URL": "orders", "AWS_DEFAULT_REGION": "ap-south-1"},
        ("https://sqs.ap-south-1.amazonaws.com", "ap-south-1", "orders")
    ),
    "a name and a profile": (
        {"SQS_QUEUE": "orders", "AWS_PROFILE": "default"}, ("https://sqs.eu-west-3.amazonaws.com", "eu-west-3", "orders")
    ),
    "a name and nothing else": (
        {"SQS_QUEUE": "orders", "AWS_CONFIG_FILE": "/nowhere"}, ("https://sqs.us-east-1.amazonaws.com", "us-east-1", "orders")
    ),
    "a name in another account": (
        {"SQS_QUEUE": "orders", "SQS_QUEUE_OWNER": ACCOUNT, "AWS_REGION": "us-east-2"},
        ("https://sqs.us-east-2.amazonaws.com", "us-east-2", "orders"),
    ),
    "a URL beats the default region": (
        {"SQS_QUEUE_URL": URL, "AWS_DEFAULT_REGION": "us-west-2"},
        ("https://sqs.eu-central-1.amazonaws.com", "eu-central-1", URL),
    ),
    "a URL beats the profile's region": (
        {"SQS_QUEUE_URL": URL, "AWS_PROFILE": "default"}, ("https://sqs.eu-central-1.amazonaws.com", "eu-central-1", URL)
    ),
    "the same region twice": (
        {"SQS_QUEUE_URL": URL, "AWS_REGION": "eu-central-1"}, ("https://sqs.eu-central-1.amazonaws.com", "eu-central-1", URL)
    ),
    "China": (
        {"SQS_QUEUE": f"arn:aws-cn:sqs:cn-north-1:{ACCOUNT}:orders"},
        ("https://sqs.cn-north-1.amazonaws.com.cn", "cn-north-1", f"https://sqs.cn-north-1.amazonaws.com.cn/{ACCOUNT}/orders"),
    ),
    "China by URL": (
        {"SQS_QUEUE_URL": f"https://sqs.cn-northwest-1.amazonaws.com.cn/{ACCOUNT}/q"},
        ("https://sqs.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1", f"https://sqs.cn-northwest-1.amazonaws.com.cn/{ACCOUNT}/q"),
    ),
    "GovCloud": (
        {"SQS_QUEUE": f"arn:aws-us-gov:sqs:us-gov-west-1:{ACCOUNT}:orders"},
        ("https://sqs.us-gov-west-1.amazonaws.com", "us-gov-west-1", f"https://sqs.us-gov-west-1.amazonaws.com/{ACCOUNT}/orders"),
    ),
    "iso": (
        {"SQS_QUEUE": f"arn:aws-iso:sqs:us-iso-east-1:{ACCOUNT}:q"},
        ("https://sqs.us-iso-east-1.c2s.ic.gov", "us-iso-east-1", f"https://sqs.us-iso-east-1.c2s.ic.gov/{ACCOUNT}/q"),
    ),
    "iso-b": (
        {"SQS_QUEUE": f"arn:aws-iso-b:sqs:us-isob-east-1:{ACCOUNT}:q"},
        ("https://sqs.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1", f"https://sqs.us-isob-east-1.sc2s.sgov.gov/{ACCOUNT}/q"),
    ),
    "iso-e": (
        {"SQS_QUEUE": f"arn:aws-iso-e:sqs:eu-isoe-west-1:{ACCOUNT}:q"},
        ("https://sqs.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1", f"https://sqs.eu-isoe-west-1.cloud.adc-e.uk/{ACCOUNT}/q"),
    ),
    "iso-f": (
        {"SQS_QUEUE": f"arn:aws-iso-f:sqs:us-isof-south-1:{ACCOUNT}:q"},
        ("https://sqs.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1", f"https://sqs.us-isof-south-1.csp.hci.ic.gov/{ACCOUNT}/q"),
    ),
    "legacy host": (
        {"SQS_QUEUE_URL": f"https://queue.amazonaws.com/{ACCOUNT}/orders"},
        ("https://sqs.us-east-1.amazonaws.com", "us-east-1", f"https://queue.amazonaws.com/{ACCOUNT}/orders"),
    ),
    "legacy host of a region": (
        {"SQS_QUEUE_URL": f"https://eu-west-1.queue.amazonaws.com/{ACCOUNT}/orders"},
        ("https://sqs.eu-west-1.amazonaws.com", "eu-west-1", f"https://eu-west-1.queue.amazonaws.com/{ACCOUNT}/orders"),
    ),
    "legacy host of China": (
        {"SQS_QUEUE_URL": f"https://cn-north-1.queue.amazonaws.com.cn/{ACCOUNT}/q"},
        ("https://sqs.cn-north-1.amazonaws.com.cn", "cn-north-1", f"https://cn-north-1.queue.amazonaws.com.cn/{ACCOUNT}/q"),
    ),
    "VPC endpoint": (
        {"SQS_QUEUE_URL": f"https://vpce-0a-b1.sqs.us-east-2.vpce.amazonaws.com/{ACCOUNT}/q"},
        ("https://vpce-0a-b1.sqs.us-east-2.vpce.amazonaws.com", "us-east-2", f"https://vpce-0a-b1.sqs.us-east-2.vpce.amazonaws.com/{ACCOUNT}/q"),
    ),
    "VPC endpoint of a zone": (
        {"SQS_QUEUE_URL": f"https://vpce-0a-b1-us-east-2a.sqs.us-east-2.vpce.amazonaws.com/{ACCOUNT}/q"},
        ("https://vpce-0a-b1-us-east-2a.sqs.us-east-2.vpce.amazonaws.com", "us-east-2",
         f"https://vpce-0a-b1-us-east-2a.sqs.us-east-2.vpce.amazonaws.com/{ACCOUNT}/q"),
    ),
    "VPC endpoint as endpoint": (
        {"SQS_QUEUE_URL": URL, "AWS_ENDPOINT": "https://vpce-1.sqs.eu-central-1.vpce.amazonaws.com"},
        ("https://vpce-1.sqs.eu-central-1.vpce.amazonaws.com", "eu-central-1", URL),
    ),
    "FIPS by URL": (
        {"SQS_QUEUE_URL": f"https://sqs-fips.us-west-1.amazonaws.com/{ACCOUNT}/q"},
        ("https://sqs-fips.us-west-1.amazonaws.com", "us-west-1", f"https://sqs-fips.us-west-1.amazonaws.com/{ACCOUNT}/q"),
    ),
    "FIPS asked for": (
        {"SQS_QUEUE_URL": f"https://sqs.us-west-1.amazonaws.com/{ACCOUNT}/q", "AWS_USE_FIPS_ENDPOINT": "true"},
        ("https://sqs-fips.us-west-1.amazonaws.com", "us-west-1", f"https://sqs.us-west-1.amazonaws.com/{ACCOUNT}/q"),
    ),
    "dual stack by URL": (
        {"SQS_QUEUE_URL": f"https://sqs.eu-north-1.api.aws/{ACCOUNT}/q"},
        ("https://sqs.eu-north-1.api.aws", "eu-north-1", f"https://sqs.eu-north-1.api.aws/{ACCOUNT}/q"),
    ),
    "dual stack asked for": (
        {"SQS_QUEUE": "q", "AWS_REGION": "eu-north-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
        ("https://sqs.eu-north-1.api.aws", "eu-north-1", "q"),
    ),
    "FIPS and dual stack": (
        {"SQS_QUEUE": "q", "AWS_REGION": "us-gov-west-1", "AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_USE_FIPS_ENDPOINT": "true"},
        ("https://sqs-fips.us-gov-west-1.api.aws", "us-gov-west-1", "q"),
    ),
    "FIPS asked for beside an endpoint": (
        {"SQS_QUEUE": "q", "AWS_ENDPOINT": "http://localhost:4566", "AWS_USE_FIPS_ENDPOINT": "true", "AWS_REGION": "eu-west-1"},
        ("http://localhost:4566", "eu-west-1", "q"),
    ),
    "an emulator's URL alone": (
        {"SQS_QUEUE_URL": "http://elasticmq:9324/000000000000/q"},
        ("http://elasticmq:9324", "eu-west-3", "http://elasticmq:9324/000000000000/q")
    ),
    "an emulator and its ARN": (
        {"SQS_QUEUE": f"arn:aws:sqs:eu-central-1:{ACCOUNT}:q", "AWS_ENDPOINT": "http://localhost:4566"},
        ("http://localhost:4566", "eu-central-1", f"arn:aws:sqs:eu-central-1:{ACCOUNT}:q"),
    ),
    "the SDK's variable for SQS": (
        {"SQS_QUEUE": "q", "AWS_ENDPOINT_URL_SQS": "http://one:1", "AWS_ENDPOINT_URL": "http://two:2"},
        ("http://one:1", "eu-west-3", "q")
    ),
    "the SDK's variable": ({"SQS_QUEUE": "q", "AWS_ENDPOINT_URL": "http://two:2"}, ("http://two:2", "eu-west-3", "q")),
    "the SDK's variable, ignored": (
        {"SQS_QUEUE": "q", "AWS_ENDPOINT_URL": "http://two:2", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        ("https://sqs.eu-west-3.amazonaws.com", "eu-west-3", "q"),
    ),
    "AWS itself, whatever the SDK's variable says": (
        {"SQS_QUEUE": "q", "AWS_ENDPOINT": "", "AWS_ENDPOINT_URL": "http://two:2"},
        ("https://sqs.eu-west-3.amazonaws.com", "eu-west-3", "q")
    ),
    "the SDK's variable beats the queue's URL": (
        {"SQS_QUEUE_URL": URL, "AWS_ENDPOINT_URL": "http://two:2"}, ("http://two:2", "eu-central-1", URL)
    ),
    "the profile's endpoint": ({"SQS_QUEUE": "q", "AWS_PROFILE": "prod"}, ("http://all.example:1", "sa-east-1", "q")),
    "the profile's endpoint for SQS": ({"SQS_QUEUE": "q", "AWS_PROFILE": "sqs"}, ("http://sqs.example:9324", "us-east-1", "q")),
    "the profile's endpoint, ignored": ({"SQS_QUEUE": "q", "AWS_PROFILE": "off"},
         ("https://sqs.us-east-1.amazonaws.com", "us-east-1", "q")),
    "an unknown profile": ({"SQS_QUEUE": "q", "AWS_PROFILE": "nobody"},
         ("https://sqs.us-east-1.amazonaws.com", "us-east-1", "q")),
    "nothing at all: the local stack": (
        {"AWS_CONFIG_FILE": "/nowhere"}, ("http://localstack:4566", "us-east-1", "http://localstack:4566/000000000000/test-queue")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SET_UPS)
def test_a_set_up(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, (endpoint, region, url) = SET_UPS[case]
    (tmp_path / "config").write_text(CONFIG)
    environ = {"AWS_CONFIG_FILE": str(tmp_path / "config"), **given}
    for name, value in environ.items():
        if name != "AWS_PROFILE" or value != "nobody":  # botocore's own complaint comes with the credentials
            monkeypatch.setenv(name, value)
    settings = load(environ, partial(profile, environ))
    assert settings.sqs_queue_url == url
    assert settings.aws_region == region
    assert access.endpoint(settings) == endpoint
    assert is_aws(settings.aws_endpoint) == (".amazonaws." in endpoint or not endpoint.startswith("http:"))
    # What `svc config` tells is enough to come to the same again.
    told = origins(environ, partial(profile, environ))
    assert told["DRAIN_TIMEOUT"] == "default"
    assert told["SQS_QUEUE_URL"] in {"set", "the ARN", "SQS_QUEUE", "default"}


def test_there_are_forty() -> None:
    assert len(SET_UPS) >= 40


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "another region": (
        {"SQS_QUEUE_URL": URL, "AWS_REGION": "us-east-1"},
        r"AWS_REGION holds 'us-east-1'.*queue in 'eu-central-1'; unset AWS_REGION"
    ),
    "another region in the ARN": (
        {"SQS_QUEUE": f"arn:aws:sqs:eu-west-1:{ACCOUNT}:q", "AWS_REGION": "us-east-1"}, "'us-east-1'.*'eu-west-1'"
    ),
    "two queues": ({"SQS_QUEUE_URL": URL, "SQS_QUEUE": "other"}, "SQS_QUEUE and SQS_QUEUE_URL name two queues"),
    "no queue at AWS": ({"AWS_ENDPOINT": ""}, "SQS_QUEUE_URL is not set while the endpoint is AWS itself"),
    "an empty queue at AWS": (
        {"SQS_QUEUE_URL": "", "AWS_ENDPOINT": "https://sqs.eu-west-1.amazonaws.com"},
        "SQS_QUEUE_URL is empty while the endpoint is AWS"
    ),
    "another account": (
        {"SQS_QUEUE_URL": URL, "SQS_QUEUE_OWNER": "999999999999"}, f"SQS_QUEUE_OWNER holds '999999999999'.*queue of {ACCOUNT}"
    ),
    "an ARN of something else": ({"SQS_QUEUE": f"arn:aws:sns:eu-west-1:{ACCOUNT}:q"}, "SQS_QUEUE_URL holds 'arn:aws:sns"),
    "an external id without a role": ({"SQS_ROLE_EXTERNAL_ID": "abc"}, "SQS_ROLE_ARN is not set"),
    "a Service called http": (
        {"HTTP_PORT": "tcp://10.0.0.7:80"}, r"Kubernetes sets it for a Service called http: put enableServiceLinks: false"
    ),
    "an endpoint of the SDK that is none": ({"SQS_QUEUE": "q", "AWS_ENDPOINT_URL": "localhost:1"},
     "AWS_ENDPOINT holds 'localhost:1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_set_up_that_cannot_hold(case: str) -> None:
    environ, words = FAULTS[case]
    with pytest.raises(BadSettings, match=words) as caught:
        load(environ)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SQS_QUEUE_ULR", "SQS_QUEUE_URL"), ("SQS_QUEUEURL", "SQS_QUEUE_URL"), ("DRAIN_TIMOUT", "DRAIN_TIMEOUT"),
        ("HTTP_POTR", "HTTP_PORT"), ("API_TOKENS", "API_TOKEN"), ("AWS_SECRET_ACESS_KEY", "AWS_SECRET_ACCESS_KEY"),
        ("MAX_CONCURENCY", "MAX_CONCURRENCY"),
    ],
)  # fmt: skip
def test_a_name_with_a_typing_error(name: str, meant: str) -> None:
    [told] = misspelled({name: "x", "HOME": "/"}, ["AWS_SECRET_ACCESS_KEY"])
    assert told == f"{name} is no setting of this service; did you mean {meant}?"


def test_names_that_are_nobodys_error() -> None:
    """Kubernetes' for a Service called etcd, the SDK's, other programs', ours."""
    environ = {
        "ETCD_PORT": "tcp://10.0.0.1:2379", "ETCD_PORT_2379_TCP_ADDR": "10.0.0.1", "ETCD_SERVICE_HOST": "10.0.0.1",
        "ETCD_SERVICE_PORT": "2379", "HTTP_PROXY": "x", "HTTPS_PROXY": "x", "PATH": "x", "HOSTNAME": "x",
        "AWS_ENDPOINT_URL": "x", "AWS_EXECUTION_ENV": "x", "OTEL_LOG_LEVEL": "x", "SQS_QUEUE": "x", "LOG_LEVEL": "x", "LANG": "x",
    }  # fmt: skip
    assert misspelled(environ) == []


def test_both_spellings_are_no_typing_error() -> None:
    assert misspelled({"API_TOKEN": "x", "API_TOKENS": "for another program"}) == []


@pytest.mark.parametrize("text", ["sqs.eu-central-1.amazonaws.com/1/q", "", "//x/q", "arn:aws:sqs:x", "http://x:1:2/q"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="no "):
        queue_address(text)


# -- through the door --


def environment(fake: Aws, **more: str) -> dict[str, str]:
    return {"AWS_ENDPOINT": fake.url, "AWS_REGION": "eu-central-1", **more}


@pytest.fixture
def fake() -> Any:
    with aws() as one:
        yield one


async def test_a_name_is_resolved_once_and_told(fake: Aws, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[Mapping[str, Any]] = []
    answer = fake.answer

    def answering(request: Any) -> Any:
        if request.headers.get("x-amz-target") == "AmazonSQS.GetQueueUrl":
            asked.append(json.loads(request.body))
            return fake.json({"QueueUrl": f"{fake.url}/queue/orders"})
        return answer(request)

    fake.answer = answering  # type: ignore[method-assign]
    settings = load(environment(fake, SQS_QUEUE="orders", SQS_QUEUE_OWNER=ACCOUNT))
    caplog.set_level("INFO")
    async with sqs.opened(settings, polls=1) as queue, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(queue.attributes)
    assert asked == [{"QueueName": "orders", "QueueOwnerAWSAccountId": ACCOUNT}]
    assert json.loads(fake.requests[-1].body)["QueueUrl"] == f"{fake.url}/queue/orders"
    assert f"queue orders is {fake.url}/queue/orders" in caplog.text


async def test_requests_are_signed_as_botocore_verifies_it(fake: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but a queue's URL, for the region that it names; the fake stands where AWS would."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    settings = load({"SQS_QUEUE_URL": URL, "AWS_ENDPOINT_URL_SQS": fake.url})
    async with sqs.opened(settings, polls=1) as queue:
        await queue.attributes()
    [request] = fake.of("sqs")
    authorization = request.headers["authorization"]
    assert f"Credential={KEY}/" in authorization
    assert "/eu-central-1/sqs/aws4_request" in authorization
    listed = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    again = AWSRequest(
        "POST", fake.url + "/", {name: request.headers[name] for name in listed}, data=request.body.encode()
    )
    again.context["timestamp"] = request.headers["x-amz-date"]
    auth = SigV4Auth(Signer(KEY, SECRET), "sqs", "eu-central-1")
    signature = auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again)
    assert authorization.endswith(f"Signature={signature}")


async def test_a_role_is_assumed_and_it_is_told_as_whom_aws_knows_us(
    fake: Aws, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.url)
    settings = load(
        environment(fake, SQS_QUEUE_URL=f"{fake.url}/0/q", SQS_ROLE_ARN=ROLE, SQS_ROLE_EXTERNAL_ID="external")
    )
    async with sqs.opened(settings, polls=1) as queue:
        await queue.attributes()
        with trio.fail_after(20):
            while "AWS knows us" not in caplog.text:
                await trio.sleep(0.01)
    assert f"AWS knows us as {ASSUMED} (credentials: the role {ROLE}" in caplog.text
    assert [request.form["Action"] for request in fake.of("sts")] == ["AssumeRole", "GetCallerIdentity"]
    assert fake.of("sts")[0].form["ExternalId"] == "external"
    assert fake.of("sqs")[0].key == f"{KEY}1"
    assert fake.of("sqs")[0].headers["x-amz-security-token"] == TOKEN
    for secret in (SECRET, TOKEN):
        assert secret not in caplog.text


async def test_that_sts_may_not_be_asked_is_no_fault(fake: Aws, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.url)
    fake.answers["sts"] = fake.refusal("AccessDenied", "no")
    async with sqs.opened(load(environment(fake, SQS_QUEUE_URL=f"{fake.url}/0/q")), polls=1) as queue:
        await queue.attributes()
        with trio.fail_after(20):
            while "STS does not say" not in caplog.text:
                await trio.sleep(0.01)


GIVEN = rf"{KEY}\d"
"""A key that a fake has given; how many it gave before does not matter."""

KEYS = f"aws_access_key_id = {KEY}p\naws_secret_access_key = {SECRET}\n"


def credentials_file(place: Place, text: str = f"[default]\n{KEYS}") -> str:
    path = place.file("credentials", text)
    place.setenv("AWS_SHARED_CREDENTIALS_FILE", path)
    return path


def profile_with_role(place: Place, **items: str) -> None:
    place.setenv("AWS_ENDPOINT_URL_STS", place.aws.url)
    place.profile(role_arn=ROLE, **items)


# How the machine is → the key that signs the requests to SQS, and where it comes from, as the log says it.
SIGNED_AS: dict[str, tuple[Callable[[Place], object], dict[str, str], str, str]] = {
    "the environment": (lambda place: place.use("env"), {}, KEY, "the environment"),
    "a credentials file": (credentials_file, {}, f"{KEY}p", "the credentials file"),
    "a profile of the credentials file": (
        lambda place: (credentials_file(place, f"[prod]\n{KEYS}"), place.setenv("AWS_PROFILE", "prod")), {}, f"{KEY}p",
        "the credentials file",
    ),
    "keys in the config file": (
        lambda place: place.profile(aws_access_key_id=f"{KEY}c", aws_secret_access_key=SECRET), {}, f"{KEY}c", "config file"
    ),
    "a profile's role with the keys of another profile": (
        lambda place: (credentials_file(place, f"[user]\n{KEYS}"), profile_with_role(place, source_profile="user")), {},
        GIVEN, "the role of the profile",
    ),
    "keys in the environment beat a profile's role": (
        lambda place: (place.use("env"), profile_with_role(place, source_profile="default")), {}, KEY, "the environment"
    ),
    "a profile's role with the machine's": (
        lambda place: (place.use("imds"), profile_with_role(place, credential_source="Ec2InstanceMetadata")), {}, GIVEN,
        "the role of the profile",
    ),
    "IRSA": (web_identity, {}, GIVEN, "the web identity"),
    "a web identity in the profile": (
        lambda place: profile_with_role(place, web_identity_token_file=place.file("token", "jwt-of-a-pod")), {}, GIVEN,
        "web identity",
    ),
    "Pod Identity": (
        lambda place: (
            place.use("container"), place.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", place.file("token", "pod"))
        ),
        {}, GIVEN, "the container endpoint",
    ),
    "an instance's role": (lambda place: place.use("imds"), {}, GIVEN, "the instance metadata service"),
    "a program": (
        lambda place: place.profile(credential_process=place.program(f"echo '{printed()}'")), {}, KEY, "credential_process"
    ),
    "a role for the queue, on top of the environment": (
        lambda place: (place.use("env"), place.setenv("AWS_ENDPOINT_URL_STS", place.aws.url)), {"SQS_ROLE_ARN": ROLE}, GIVEN,
        f"the role {ROLE} (SQS_ROLE_ARN, through the environment",
    ),
    "a role for the queue, on top of IRSA": (
        web_identity, {"SQS_ROLE_ARN": ROLE}, GIVEN, f"the role {ROLE} (SQS_ROLE_ARN, through the web identity",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", SIGNED_AS)
async def test_who_signs(place: Place, case: str, caplog: pytest.LogCaptureFixture) -> None:
    prepare, more, key, source = SIGNED_AS[case]
    caplog.set_level("DEBUG", "svc.sqs.credentials")
    prepare(place)
    async with sqs.opened(load(environment(place.aws, SQS_QUEUE_URL=f"{place.aws.url}/0/q", **more)), polls=1) as queue:
        with trio.fail_after(20):
            await queue.attributes()
    assert re.fullmatch(key, place.aws.of("sqs")[-1].key)
    assert source in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.slow
async def test_late_rotated_and_refused_credentials_are_taken_up(place: Place) -> None:
    settings = load(environment(place.aws, SQS_QUEUE_URL=f"{place.aws.url}/0/q"))
    place.setenv("AWS_SHARED_CREDENTIALS_FILE", str(place.home / "credentials"))

    async def signed_by(queue: sqs.SqsQueue, key: str) -> None:
        with trio.fail_after(20):
            while True:
                with suppress(QueueError):
                    await queue.attributes()
                    if place.aws.of("sqs")[-1].key == key:
                        return
                await trio.sleep(0.2)

    async with sqs.opened(settings, polls=1) as queue:
        with pytest.raises(QueueError, match="no AWS credentials"):
            await queue.attributes()
        credentials_file(place)
        await signed_by(queue, f"{KEY}p")
        credentials_file(place, f"[default]\n{KEYS}".replace(f"{KEY}p", f"{KEY}r"))  # rotated
        await signed_by(queue, f"{KEY}r")
        place.aws.accepted = f"{KEY}s"  # and the old ones are no longer taken
        try:
            with pytest.raises(QueueError, match="expired"):
                await queue.attributes()
            credentials_file(place, f"[default]\n{KEYS}".replace(f"{KEY}p", f"{KEY}s"))
            await signed_by(queue, f"{KEY}s")
        finally:
            place.aws.accepted = None


def test_by_keyword_too() -> None:
    settings = Settings(sqs_queue_url=URL)
    assert (settings.aws_endpoint, settings.aws_region) == ("", "eu-central-1")
