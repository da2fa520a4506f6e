"""How a queue may be named (URL, ARN or plain name), and what follows from it: region, account, endpoint. Pure."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

# Partition → suffixes of its hosts: the ordinary one, which URLs are made with, and that of dual-stack endpoints.
_SUFFIXES = {
    "aws": ("amazonaws.com", "api.aws"),
    "aws-cn": ("amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    "aws-us-gov": ("amazonaws.com", "api.aws"),
    "aws-iso": ("c2s.ic.gov", "api.aws.ic.gov"),
    "aws-iso-b": ("sc2s.sgov.gov", "api.aws.scloud"),
    "aws-iso-e": ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    "aws-iso-f": ("csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    "aws-eusc": ("amazonaws.eu", "api.amazonwebservices.eu"),
}
_ANY_SUFFIX = "|".join(sorted({re.escape(one) for pair in _SUFFIXES.values() for one in pair}, key=len, reverse=True))
_REGION = r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]+"
_HOST = re.compile(
    rf"(?:(?P<plain>sqs(?:-fips)?)\.(?P<region>{_REGION})"
    rf"|(?P<vpce>vpce-[a-z0-9-]+)\.sqs\.(?P<vpce_region>{_REGION})\.vpce"
    rf"|(?P<legacy>(?:(?P<legacy_region>{_REGION})\.)?queue))\.(?P<suffix>{_ANY_SUFFIX})"
)
_ARN = re.compile(r"arn:(aws[a-z-]*):sqs:([a-z0-9-]+):([0-9]{12}):([A-Za-z0-9_-]{1,80}(?:\.fifo)?)")
_NETLOC = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}(?:\.fifo)?")


@dataclass(frozen=True, slots=True)
class QueueAddress:
    """What a queue's URL, ARN or name says."""

    name: str
    url: str | None = None
    """None: SQS has to be asked for it."""
    account: str | None = None
    region: str | None = None
    endpoint: str | None = None
    """Where requests go if nothing else says so; empty: to AWS, as its SDKs resolve it for the region. None: nothing follows."""


def queue_address(text: str) -> QueueAddress:
    """Read a URL, an ARN or a name; raises ValueError for anything else. A URL is taken as it is (`values.queue` checks it)."""
    if text.startswith("arn:"):
        return _of_arn(text)
    if "/" not in text and ":" not in text:
        if not _NAME.fullmatch(text):
            raise ValueError("no queue name")
        return QueueAddress(text)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not _NETLOC.fullmatch(parts.netloc) or parts.port == 0:
        raise ValueError("no URL")
    name = parts.path.rstrip("/").rpartition("/")[2]
    account = re.fullmatch(r"/([0-9]{12})/[^/]+/?", parts.path)
    owner = account[1] if account else None
    found = _HOST.fullmatch((parts.hostname or "").lower())
    if not found:
        return QueueAddress(name, text, owner, None, f"{parts.scheme}://{parts.netloc}")
    if found["legacy"]:
        # Without a region it is that of the partition's first one. Requests go to the region's present host.
        first = "cn-north-1" if found["suffix"].endswith(".cn") else "us-east-1"
        return QueueAddress(name, text, owner, found["legacy_region"] or first, "")
    region = found["region"] or found["vpce_region"]
    ordinary = found["plain"] == "sqs" and any(found["suffix"] == pair[0] for pair in _SUFFIXES.values())
    return QueueAddress(name, text, owner, region, "" if ordinary else f"{parts.scheme}://{parts.netloc}")


def _of_arn(text: str) -> QueueAddress:
    found = _ARN.fullmatch(text)
    if not found or found[1] not in _SUFFIXES or not re.fullmatch(_REGION, found[2]):
        raise ValueError("no ARN of a queue")
    partition, region, account, name = found.groups()
    url = f"https://sqs.{region}.{_SUFFIXES[partition][0]}/{account}/{name}"
    return QueueAddress(name, url, account, region, "")


_PARTITIONS = {
    "cn-": "aws-cn", "us-gov-": "aws-us-gov", "us-iso-": "aws-iso", "us-isob-": "aws-iso-b", "eu-isoe-": "aws-iso-e",
    "us-isof-": "aws-iso-f", "eusc-": "aws-eusc",
}  # fmt: skip


def partition_of(region: str) -> str:
    """As it stands in ARNs."""
    return next((partition for start, partition in _PARTITIONS.items() if region.startswith(start)), "aws")


def is_aws(endpoint: str) -> bool:
    """Whether requests to this SQS endpoint (as in AWS_ENDPOINT) reach AWS itself, and not something in its place."""
    host = (urlsplit(endpoint).hostname or "") if endpoint else ""
    return not endpoint or bool(re.search(rf"(?:^|\.)(?:{_ANY_SUFFIX})$", host.lower()))
