"""Why there are no AWS credentials, in words: any exception of a source as a `QueueError`.

The text is made here. It never quotes what a source answered, except the sentence with which STS or SSO refuses: the rest
may be a secret.
"""

import json
import os
import re
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.utils import ContainerMetadataFetcher

from svc.consumer.queue import QueueError, QueueMisconfigured, QueueUnavailable

_MISSING = re.compile(r"not contain: ((?:access_key|secret_key|token|expiry_time|, )+)|key in response: '(\w{1,30})'")


def told(error: Exception, source: str) -> QueueError:
    """Any exception of a source, as the border's own."""
    where = _endpoint(error)
    match error:
        case boto.ClientError():
            return _refused(error, source)
        case boto.PartialCredentialsError():
            return QueueMisconfigured(
                f"AWS credentials: {source} gives only a part of them: {_word(error.kwargs.get('cred_var'))} is missing; set it"
            )
        case boto.UnauthorizedSSOTokenError() | boto.SSOError() | boto.TokenRetrievalError() | boto.NoAuthTokenError():
            return QueueMisconfigured(
                f"AWS credentials: the login of {source} has expired or is not there; log in again (`aws sso login`), which is "
                "noticed here without a restart"
            )
        case boto.ProfileNotFound():
            return QueueMisconfigured(
                f"AWS credentials: there is no profile {_word(error.kwargs.get('profile'))!r} in AWS_CONFIG_FILE or "
                "AWS_SHARED_CREDENTIALS_FILE; check AWS_PROFILE"
            )
        case boto.ConfigParseError() | boto.ConfigNotFound():
            return QueueMisconfigured(
                f"AWS credentials: the file {str(error.kwargs.get('path'))[:200]!r} cannot be read as an AWS configuration"
            )
        case boto.InvalidConfigError() | boto.InfiniteLoopConfigError():
            return QueueMisconfigured(
                f"AWS credentials: {source} is not configured completely; check the profile's role_arn, source_profile and "
                "credential_source, or AWS_ROLE_ARN"
            )
        case boto.ParamValidationError():  # its own text quotes the values
            named = re.findall(r"parameter ([A-Za-z]+)", str(error.kwargs.get("report")))
            return QueueMisconfigured(
                f"AWS credentials: {', '.join(map(_word, named)) or 'a value'} of {source} is not what AWS takes; correct it"
            )
        case boto.SSLError():
            return QueueMisconfigured(
                f"AWS credentials: no TLS connection to {where} for {source}; check that its certificate is trusted "
                "(AWS_CA_BUNDLE)"
            )
        case boto.ProxyConnectionError():
            return QueueUnavailable(
                f"AWS credentials: the HTTP proxy on the way to {where} cannot be reached for {source}; check "
                "HTTPS_PROXY and NO_PROXY"
            )
        case boto.ConnectionError() | boto.HTTPClientError():
            return QueueUnavailable(
                f"AWS credentials: {where} cannot be reached or broke off, for {source}; looked for again"
            )
        case boto.CredentialRetrievalError() | boto.MetadataRetrievalError():
            return _not_retrieved(error, source)
        case OSError():
            return _file(error, source)
        case ValueError() if (host := _refused_host()) and "container" in source:
            return QueueMisconfigured(
                f"AWS credentials: {host!r}, the host of AWS_CONTAINER_CREDENTIALS_FULL_URI, is not one that the AWS SDK asks "
                "for credentials over http; name a loopback address, 169.254.170.2, 169.254.170.23 or fd00:ec2::23, or use https"
            )
        case KeyError() if isinstance(error.args[0], str):
            return QueueUnavailable(f"AWS credentials: what {source} answers lacks {_word(error.args[0])}")
        case json.JSONDecodeError() | UnicodeDecodeError():
            return QueueUnavailable(
                f"AWS credentials: what {source} answers is not JSON; see what it prints or who answers there"
            )
        case _:
            return QueueUnavailable(
                f"AWS credentials: what {source} answers cannot be read as credentials ({type(error).__name__})"
            )


def _refused(error: boto.ClientError, source: str) -> QueueError:
    about = error.response.get("Error") if isinstance(error.response, dict) else None
    about = about if isinstance(about, dict) else {}
    code, text = _word(about.get("Code")), _sentence(about.get("Message"))
    metadata = error.response.get("ResponseMetadata")
    status = metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None
    asked = _word(error.operation_name) or "the call"
    service = "SSO" if "RoleCredentials" in asked else "STS"
    if service == "SSO" and status == 401:
        return told(boto.UnauthorizedSSOTokenError(), source)
    if isinstance(status, int) and status >= 500:
        return QueueUnavailable(
            f"AWS credentials: {service} broke down at {asked} (HTTP {status}, {code}), for {source}"
        )
    if code.startswith(("Throttl", "RequestLimit", "TooManyRequests")):
        return QueueUnavailable(f"AWS credentials: {service} throttled {asked} ({code}), for {source}")
    if code.startswith(("Signature", "InvalidSignature", "IncompleteSignature")):
        text = "check the keys and this machine's clock"  # its own text holds the signed headers
    return QueueMisconfigured(
        f"AWS credentials: {service} refused {asked} for {source} ({code}: {text}); check the role's ARN and trust policy, and "
        "what asks for it"
    )


def _not_retrieved(error: boto.BotoCoreError, source: str) -> QueueError:
    said = str(error)
    if status := re.search(r"non 200 response ([0-9]{3})\b", said):
        return QueueUnavailable(f"AWS credentials: {source} answered with HTTP {status[1]}; looked for again")
    if missing := re.search(
        r"did not contain: ((?:access_key|secret_key|token|expiry_time|, )+)|key in response: '(\w{1,30})'", said
    ):
        return QueueUnavailable(f"AWS credentials: what {source} answers lacks {missing[1] or missing[2]}")
    if "parse JSON" in said:
        return QueueUnavailable(f"AWS credentials: what {source} answers is not JSON; see who answers there")
    if "Unsupported version" in said:
        return QueueUnavailable(f"AWS credentials: what {source} prints has another Version than 1")
    if "IMDSv1 has been disabled" in said:
        return QueueUnavailable(
            f"AWS credentials: {source} gave no token for IMDSv2; check its hop limit and that it is up"
        )
    if "attempting to retrieve" in said:
        return QueueUnavailable(f"AWS credentials: {source} cannot be reached; looked for again")
    return QueueUnavailable(f"AWS credentials: {source} gave none ({type(error).__name__})")


def _file(error: OSError, source: str) -> QueueError:
    name = error.filename if isinstance(error.filename, str) else None
    named = f"{name[:200]!r} of {source}" if name else source
    why = error.strerror or type(error).__name__
    return QueueMisconfigured(f"AWS credentials: {named} cannot be used ({why}); it is tried again until it can")


def _refused_host() -> str | None:
    """The host of the container endpoint where the SDK refuses it, if that is so."""
    uri = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "").strip()
    if not uri or "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in os.environ:
        return None
    try:
        ContainerMetadataFetcher()._validate_allowed_url(uri)
        return None
    except ValueError:
        try:
            return (urlsplit(uri).hostname or uri)[:100]
        except ValueError:
            return "an address that cannot be read"


def _endpoint(error: Exception) -> str:
    parts = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or ""))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "its endpoint"


def _word(text: object) -> str:
    """A name as others give it: short, without anything that a secret could hide in."""
    found = re.match(r"[A-Za-z][A-Za-z0-9_.-]{0,60}", text) if isinstance(text, str) else None
    return found[0] if found else "?"


def _sentence(text: object) -> str:
    """The words of STS on one line, at bearable length; long runs of key-like characters are left out."""
    line = re.sub(r"\s+", " ", text).strip() if isinstance(text, str) else ""
    return re.sub(r"[A-Za-z0-9+/=_.-]{40,}", _unless_arn, "".join(c for c in line if c.isprintable()))[:300]


def _unless_arn(run: re.Match[str]) -> str:
    return run[0] if run.string[max(0, run.start() - 80) : run.start()].rpartition(" ")[2].startswith("arn:") else "…"
