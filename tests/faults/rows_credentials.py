"""AWS credentials in trouble: each source fails at a renewal, or is late at the start. Those that are given hold for 4 s."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from tests.aws_services import ROLE, Aws, aws, date
from tests.faults.rows import scenario
from tests.faults.rows_sqs import FAILED, WORKS, unhealthy
from tests.faults.trial import Footprint, Trial
from tests.sqs.test_credential_sources import SSO_PROFILE

NONE = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
LIFETIME = 4.0

Break = Callable[[Aws, Path], object]
"""What goes wrong: at the fake, or with the files in the folder."""


def at_renewal(
    name: str,
    fault: str,
    says: str,
    source: Callable[[Aws, Path], dict[str, str]],
    break_it: Break,
    mend: Break = lambda fake, folder: fake.answers.clear(),
    *,
    prefix: Sequence[str] = (),
    by_default: bool = False,
) -> None:
    @scenario(name, fault, f"`/health` 503, “{says}”; recovers by itself", by_default=by_default)
    async def run(t: Trial) -> None:
        with aws() as fake:
            fake.lifetime = LIFETIME
            folder = t.stand.record.parent
            await t.start(prefix=prefix, **{**NONE, **source(fake, folder)})
            async with t.outage(named=FAILED, over=WORKS):
                break_it(fake, folder)
                await unhealthy(t, says, hold=2 * LIFETIME)
                mend(fake, folder)
            await t.settle()


def container(fake: Aws, folder: Path) -> dict[str, str]:
    return fake.environ("container")


def web_identity(fake: Aws, folder: Path) -> dict[str, str]:
    (folder / "token").write_text("jwt-of-a-pod\n")
    return {**fake.environ("sts"), "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token")}


def role(fake: Aws, folder: Path) -> dict[str, str]:
    """The keys of a user who assumes a role for the queue."""
    return {
        **fake.environ("env"), "AWS_ENDPOINT_URL_STS": fake.url, "SQS_ROLE_ARN": ROLE, "SQS_ROLE_EXTERNAL_ID": "external",
    }  # fmt: skip


def sso(fake: Aws, folder: Path) -> dict[str, str]:
    """A login that lasts; what the portal gives for it does not."""
    (folder / "config").write_text(SSO_PROFILE)
    login = folder / ".aws" / "sso" / "cache" / f"{hashlib.sha1(b'https://start.example').hexdigest()}.json"
    login.parent.mkdir(parents=True)
    login.write_text(json.dumps({"accessToken": "sso-token", "expiresAt": date(3600)}))
    return {
        "HOME": str(folder), "AWS_CONFIG_FILE": str(folder / "config"), "AWS_PROFILE": "sso", "AWS_ENDPOINT_URL_SSO": fake.url,
    }  # fmt: skip


def process(fake: Aws, folder: Path) -> dict[str, str]:
    """Prints what the file `printed` holds, with a date of now."""
    program = folder / "program"
    program.write_text(
        '#!/bin/sh\ntest -e "$0.page" && { cat "$0.page"; exit 0; }\n'
        f'printf \'{{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "S", "Expiration": "%s"}}\' '
        f'"$(date -u -d "+{LIFETIME:g} seconds" +%Y-%m-%dT%H:%M:%SZ)"\n'
    )
    program.chmod(0o755)
    (folder / "config").write_text(f"[default]\ncredential_process = {program}\n")
    return {"AWS_CONFIG_FILE": str(folder / "config")}


at_renewal(
    "credentials-expired",
    "the container endpoint gives credentials whose Expiration is past",
    "have expired",
    container,
    lambda fake, folder: fake.answers.update(container=fake.json(fake.given() | {"Expiration": date(-60)})),
    by_default=True,
)
at_renewal(
    "credentials-lack-a-key",
    "the container endpoint's answer lacks SecretAccessKey",
    "lacks SecretAccessKey",
    container,
    lambda fake, folder: fake.answers.update(container=fake.json({"AccessKeyId": "A", "Token": "T"})),
)
at_renewal(
    "credentials-page",
    "something else than the container endpoint answers (HTTP 200, a page)",
    "is not JSON",
    container,
    lambda fake, folder: fake.answers.update(container=b"<html>Sign in</html>"),
)
at_renewal(
    "credentials-sts-refuses",
    "STS refuses the role of the web identity",
    "STS refused AssumeRoleWithWebIdentity",
    web_identity,
    lambda fake, folder: fake.answers.update(sts=fake.refusal("AccessDenied", f"Not authorized on {ROLE}")),
)
at_renewal(
    "credentials-role-refused",
    "STS refuses the role for the queue (`SQS_ROLE_ARN`)",
    "STS refused AssumeRole",
    role,
    lambda fake, folder: fake.answers.update(sts=fake.refusal("AccessDenied", f"Not authorized on {ROLE}")),
)
at_renewal(
    "credentials-sso-ended",
    "the SSO session has ended (`aws sso login` renews it)",
    "aws sso login",
    sso,
    lambda fake, folder: fake.answers.update(sso=(401, fake.json({"message": "Session token not found or invalid"}))),
    prefix=["env"],  # botocore looks for the home directory when it is imported
)
at_renewal(
    "credentials-no-token-file",
    "the web identity's token file is gone",
    "No such file",
    web_identity,
    lambda fake, folder: (folder / "token").unlink(),
    lambda fake, folder: web_identity(fake, folder),
)
at_renewal(
    "credentials-process-page",
    "the profile's `credential_process` prints a page",
    "credential_process answers is not JSON",
    process,
    lambda fake, folder: (folder / "program.page").write_text("<html>"),
    lambda fake, folder: (folder / "program.page").unlink(),
)


@scenario(
    "credentials-late",
    "the instance metadata service is down when the service starts",
    "`/health` 503, “no AWS credentials”, and where it has looked; works by itself when the metadata service does",
)
async def _(t: Trial) -> None:
    with aws() as fake:
        fake.answers["imds"] = 503, b"not yet"
        await t.start(load=False, **NONE, **fake.environ("imds"))
        async with t.outage(named=FAILED, over=WORKS, from_the_start=True):
            await unhealthy(t, "no AWS credentials")
            fake.answers.clear()
        t.load()
        await t.processes()
        working = Footprint.of(t.service.pid)  # at its start it had no connection to SQS
        t.row.memory, t.row.files = (working.memory, 0.0), (working.files, 0)
        await t.settle()


@scenario(
    "credentials-file-torn",
    "`AWS_SHARED_CREDENTIALS_FILE` is emptied, holds half of a key, is gone, and comes back with another key",
    "nothing but a warning: work goes on with the keys that there are, and then with the others",
)
async def _(t: Trial) -> None:
    path = t.stand.record.parent / "credentials"
    whole = "[default]\naws_access_key_id = AKIA{}\naws_secret_access_key = secret\n"
    path.write_text(whole.format("ONE"))
    await t.start(**NONE, AWS_SHARED_CREDENTIALS_FILE=str(path), AWS_EC2_METADATA_DISABLED="true")
    async with t.outage(
        named="AWS credentials could not be renewed, trying again",
        over="AWS credentials come from the credentials file",
        calls_limit=WORKING,
    ):
        for text in ("", whole.format("TWO")[:40], None):
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
            await trio.sleep(3)
            body = await t.healthy(lambda body: True)
            assert body["status"] == "healthy"
            await t.processes()
        path.write_text(whole.format("TWO"))


WORKING = 40.0
"""Calls per second where work goes on."""


@scenario(
    "credentials-refused-host",
    "`AWS_CONTAINER_CREDENTIALS_FULL_URI` names a host that the AWS SDK does not ask over http",
    "`/health` 503, which names the host, the variable and what it may hold; put right, the next instance works",
)
async def _(t: Trial) -> None:
    wrong = await t.start(load=False, **NONE, AWS_CONTAINER_CREDENTIALS_FULL_URI="http://credentials.example/x")
    with aws() as fake:
        async with t.outage(named=None, over=None, from_the_start=True):
            await unhealthy(t, "the host of AWS_CONTAINER_CREDENTIALS_FULL_URI")
            wrong.signal(15)
            assert await wrong.exit_code() == 0
            await t.start(load=False, **NONE, **fake.environ("container"))
        t.load()
        with trio.fail_after(30):
            await t.processes()
        await t.settle()
