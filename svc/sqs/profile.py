"""What the profile of the AWS configuration says of the queue's place: its region and its `endpoint_url`."""

import os
from collections.abc import Mapping
from typing import Any

from botocore import exceptions as boto
from botocore.configloader import load_config

from svc.settings import Profile


def profile(environ: Mapping[str, str]) -> Profile:
    """Of `AWS_PROFILE` in `AWS_CONFIG_FILE`. A file or a profile that is not there, or cannot be read, says nothing: what is
    wrong with it is told by who looks for credentials in it."""
    path = environ.get("AWS_CONFIG_FILE") or os.path.join("~", ".aws", "config")
    try:
        found = load_config(path)
    except (boto.BotoCoreError, OSError, ValueError):
        return Profile()
    name = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
    own = _section(found, "profiles", name)
    services = _section(found, "services", str(own.get("services", "")))
    of_sqs = services.get("sqs")
    urls = [of_sqs.get("endpoint_url") if isinstance(of_sqs, Mapping) else None, own.get("endpoint_url")]
    if str(own.get("ignore_configured_endpoint_urls", "")).lower() == "true":
        urls = []
    return Profile(_text(own.get("region")), next((text for url in urls if (text := _text(url))), None))


def _section(found: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    own = found.get(kind, {}).get(name, {})
    return own if isinstance(own, Mapping) else {}


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
