"""What the SDK hands over to the direct road: where SQS is, and how its requests are signed and secured.

Endpoints, regions and profiles are the SDK's business, with all of its variables and files: a session of its is made, asked, and
thrown away. What the direct road cannot do is told from the same session.
"""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as boto
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from svc import __version__
from svc.settings import Settings
from svc.sqs.access import sdk_client, unusable
from svc.sqs.signing import can_sign


@dataclass(frozen=True, slots=True)
class Handover:
    """All that the direct road needs of the SDK."""

    url: str
    """Of the endpoint: scheme, host and port."""
    region: str
    """Of the signatures."""
    user_agent: str
    ca_bundle: str | None
    """The file of certificate authorities for TLS."""


class NotDirect(Exception):
    """The configuration asks for what the direct road does not do. The text names it."""


def handover(settings: Settings) -> Handover:
    """Ask the SDK. Reads files and takes some 0.1 s. Raises `NotDirect`, and `QueueMisconfigured` for what the SDK cannot use."""
    session = botocore.session.Session()
    try:
        # A client, which resolves an endpoint by rules and tables of 9 MiB, only where there is something to resolve.
        url = settings.aws_endpoint or str(sdk_client(settings, session).meta.endpoint_url)
        _check(session, url)
        return Handover(url, settings.aws_region, user_agent(session), _ca_bundle(session))
    except boto.BotoCoreError as error:
        raise unusable(error) from None


def user_agent(session: Any) -> str:
    """Our name, what botocore says of itself, and the application's name if the SDK is configured with one. Made once: without
    it botocore composes its own twice for each call, which is a seventh of what a call costs."""
    application = session.get_config_variable("user_agent_appid")
    return f"svc/{__version__} {session.user_agent()}" + (f" app/{application}" if application else "")


def _check(session: Any, url: str) -> None:
    """Raise `NotDirect` for what is not done here."""
    if get_environ_proxies(url).get(urlsplit(url).scheme):
        raise NotDirect("an HTTP proxy")
    if session.get_config_variable("auth_scheme_preference"):
        raise NotDirect("signatures of another kind than version 4")
    if not can_sign(url):
        raise NotDirect("an endpoint with a path")


def _ca_bundle(session: Any) -> str | None:
    """The one that botocore would use: `AWS_CA_BUNDLE`, the profile's, `REQUESTS_CA_BUNDLE`, certifi's."""
    configured = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True
    path: str | None = get_cert_path(configured)
    return path
