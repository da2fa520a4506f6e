"""Where AWS credentials come from: botocore's ordinary chain, walked once from its beginning, and every failure in words.

`look()` blocks (files, processes, the network), so that it is called in a thread: `credentials.py` does. It walks the chain anew
each time, with a session of its own, because botocore remembers: a metadata service that was down is not asked again, a file that
was rewritten is not read again.

Whatever a source answers, what comes out is `Found` or a `QueueError` (`credential_errors.py`): a list of known exceptions
would be no border.
"""

import logging
import math
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import botocore.session
from botocore.config import Config
from botocore.credentials import ContainerProvider, ProcessProvider
from botocore.loaders import Loader
from botocore.utils import ContainerMetadataFetcher

from svc.consumer.queue import QueueError, QueueMisconfigured, QueueUnavailable
from svc.sqs.credential_errors import told

# They log a failed renewal with its traceback; what failed is told by us, in a sentence.
for _name in ("botocore.credentials", "botocore.tokens"):
    logging.getLogger(_name).addFilter(lambda record: not record.exc_info)

PROCESS_SECONDS = 30.0
"""How long a `credential_process` may take."""


class Keys(NamedTuple):
    """What signs a request. Never printed."""

    access_key: str
    secret_key: str
    token: str | None

    def __repr__(self) -> str:
        return "Keys(********)"


@dataclass(frozen=True, slots=True)
class Role:
    """A role to assume on top of the credentials that there are."""

    arn: str
    session_name: str
    external_id: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Found:
    """Credentials, and what is known of them."""

    keys: Keys
    source: str
    """In words: "the environment (AWS_ACCESS_KEY_ID)"."""
    expires: float | None = None
    """Seconds since 1970; None: not known to expire."""
    files: tuple[str, ...] = ()
    """Files that change when the credentials do."""
    notes: tuple[str, ...] = ()
    """What an operator should know, one sentence each."""


_SOURCES = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "assume-role": "the role of the profile (role_arn)",
    "assume-role-with-web-identity": "the web identity (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "sso": "SSO (the profile's)",
    "shared-credentials-file": "the credentials file (AWS_SHARED_CREDENTIALS_FILE)",
    "login": "`aws login` (the profile's)",
    "custom-process": "the profile's credential_process",
    "config-file": "the config file (AWS_CONFIG_FILE)",
    "container-role": "the container endpoint (AWS_CONTAINER_CREDENTIALS_…_URI)",
    "iam-role": "the instance metadata service",
}
"""botocore's name of a source → ours, in the order in which they are tried. Two more are of a time before this service."""

_loader = Loader()  # parsed descriptions of services are kept: reading them is most of what a walk costs


def look(region: str, role: Role | None = None) -> Found:
    """Walk the chain once. Raises `QueueUnavailable` where the same walk may succeed later, `QueueMisconfigured` where somebody
    has to change something; nothing else, ever."""
    try:
        return _walk(region, role)
    except QueueError:
        raise
    except Exception as error:
        raise told(error, "the AWS configuration of this machine") from None


def _session(region: str) -> Any:
    session = botocore.session.Session()
    session.register_component("data_loader", _loader)
    session.set_config_variable("region", region)
    session.set_default_client_config(
        Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
    )
    return session


def _walk(region: str, role: Role | None) -> Found:
    session = _session(region)
    tried = []
    for provider in _providers(session):
        source = _SOURCES.get(provider.METHOD, provider.METHOD)
        try:
            loaded = provider.load()
            if loaded is None:
                tried.append(source)
                continue
            found = _read(session, loaded, source)
        except QueueError:
            raise
        except Exception as error:
            raise told(error, source) from None
        return found if role is None else _assumed(session, found, role)
    raise _nothing(tried)


def _providers(session: Any) -> list[Any]:
    """botocore's, with four changes: nothing waits for a terminal, a process is bounded, retries are ours, blanks are dropped."""
    providers: list[Any] = []
    for provider in session.get_component("credential_provider").providers:
        match provider.METHOD:
            case "custom-process":
                profile = session.get_config_variable("profile") or "default"
                provider = ProcessProvider(profile, lambda: session.full_config, popen=_Process)
            case "container-role":
                # By itself it sleeps for three seconds between its attempts; callers wait, and come again on their own.
                fetcher = ContainerMetadataFetcher(sleep=lambda seconds: None)
                provider = ContainerProvider(environ=_without_line_breaks(os.environ), fetcher=fetcher)
            case "assume-role":
                provider._prompter = _no_terminal
            case "assume-role-with-web-identity":
                provider._token_loader_cls = _TokenFile
        providers.append(provider)
    return providers


def _without_line_breaks(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name].strip() for name in environ if name.startswith("AWS_CONTAINER_")}


class _Process(subprocess.Popen[bytes]):
    def __init__(self, command: list[str], **more: Any) -> None:
        super().__init__(command, stdin=subprocess.DEVNULL, **more)

    def communicate(self, *args: Any, **more: Any) -> tuple[bytes, bytes]:
        try:
            output = super().communicate(timeout=PROCESS_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            raise QueueUnavailable(
                f"AWS credentials: the profile's credential_process took longer than {PROCESS_SECONDS:g} s; run it by hand"
            ) from None
        if self.returncode:
            # Its words are its own, and may hold anything.
            raise QueueUnavailable(
                f"AWS credentials: the profile's credential_process ended with exit code {self.returncode}; run it by hand "
                "to see what it says"
            )
        return output


def _no_terminal(prompt: str) -> str:
    raise QueueMisconfigured(
        "AWS credentials: the profile's role asks for an MFA code (mfa_serial), which a service cannot type; use a role "
        "without, or SSO"
    )


class _TokenFile:
    """A web identity token, read anew for each call of STS."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self) -> str:
        with open(self._path, encoding="utf-8") as file:
            token = file.read().strip()
        if not token:
            raise QueueUnavailable(f"AWS credentials: the web identity token file {self._path} is empty")
        return token


def _read(session: Any, loaded: Any, source: str) -> Found:
    # Never renewed by botocore: the whole walk is repeated instead.
    loaded._advisory_refresh_timeout = loaded._mandatory_refresh_timeout = -math.inf
    try:
        frozen = loaded.get_frozen_credentials()
    except RuntimeError:  # "still expired": their date is looked at by who asked for them
        frozen = loaded._frozen_credentials
    moment = getattr(loaded, "_expiry_time", None)
    return checked((frozen.access_key, frozen.secret_key, frozen.token), source, moment, files=_files(session))


def checked(parts: tuple[object, object, object], source: str, expires: object, files: tuple[str, ...] = ()) -> Found:
    """`Found` of what a source gave: key, secret, token. Raises `QueueMisconfigured` for what cannot be sent in a header."""
    clean: list[str | None] = []
    notes = []
    for name, value in zip(("access key id", "secret access key", "session token"), parts, strict=True):
        optional = name == "session token"
        if value is None and optional:
            clean.append(None)
            continue
        if not isinstance(value, str):
            raise QueueMisconfigured(f"AWS credentials: the {name} that {source} gives is no text; correct it there")
        text = value.strip()
        if text != value:
            notes.append(f"the {name} that {source} gives has a line break or blank at an end, which was dropped")
        if not text and optional:
            clean.append(None)
            continue
        if not re.fullmatch(r"[\x21-\x7e]+", text):
            what = "is empty" if not text else "holds a blank, a line break or another character that no key has"
            raise QueueMisconfigured(f"AWS credentials: the {name} that {source} gives {what}; correct it there")
        clean.append(text)
    access, secret, token = clean
    return Found(Keys(access or "", secret or "", token), source, _moment(expires, source), files, tuple(notes))


def _moment(expires: object, source: str) -> float | None:
    if expires is None:
        return None
    if not isinstance(expires, datetime):
        raise QueueUnavailable(f"AWS credentials: {source} gives no date as their Expiration")
    return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp()


def _files(session: Any) -> tuple[str, ...]:
    paths = [session.get_config_variable(name) for name in ("credentials_file", "config_file")]
    paths.append(os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"))
    return tuple(os.path.expanduser(path) for path in paths if path)


def who(keys: Keys, region: str) -> str:
    """The ARN as which AWS knows these credentials. Raises whatever the SDK does."""
    client = _session(region).create_client(
        "sts", aws_access_key_id=keys.access_key, aws_secret_access_key=keys.secret_key, aws_session_token=keys.token
    )
    return _word_of_arn(client.get_caller_identity()["Arn"])


def _word_of_arn(arn: object) -> str:
    found = re.fullmatch(r"arn:[\w+=,.@:/-]{1,1000}", arn) if isinstance(arn, str) else None
    if found is None:
        raise ValueError("no ARN")
    return found[0]


def _assumed(session: Any, base: Found, role: Role) -> Found:
    source = f"the role {role.arn} (SQS_ROLE_ARN, through {base.source})"
    try:
        client = session.create_client(
            "sts",
            aws_access_key_id=base.keys.access_key,
            aws_secret_access_key=base.keys.secret_key,
            aws_session_token=base.keys.token,
        )
        more = {} if role.external_id is None else {"ExternalId": role.external_id}
        answer = client.assume_role(RoleArn=role.arn, RoleSessionName=role.session_name, **more)["Credentials"]
        parts = (answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"])
        found = checked(parts, source, answer["Expiration"], base.files)
    except QueueError:
        raise
    except Exception as error:
        raise told(error, source) from None
    return Found(found.keys, source, found.expires, base.files, base.notes + found.notes)


def _nothing(tried: list[str]) -> QueueError:
    listed = ", ".join(source for source in _SOURCES.values() if source in tried)
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return QueueMisconfigured(
            "there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role (an "
            f"emulator takes any); looked in {listed} (off: AWS_EC2_METADATA_DISABLED)"
        )
    return QueueUnavailable(
        "there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role (an "
        f"emulator takes any); looked in {listed}, which does not answer or has no usable role; looked for again until there "
        "are some"
    )
