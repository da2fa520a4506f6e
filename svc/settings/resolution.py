"""What the settings of the queue follow from where they are not set: AWS's own variables, the profile, the queue's URL or ARN.

The order is that of the AWS SDKs where they have one. Pure: the profile is handed in, and asked for only where it matters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from svc.settings.queue_address import QueueAddress, is_aws, queue_address

DEFAULT_QUEUE = "http://localstack:4566/000000000000/test-queue"
DEFAULT_ENDPOINT = "http://localstack:4566"
"""Of the documented local stack; used with the default queue only: nobody's signed requests go to a host of this name because
a variable was forgotten."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What the profile of the AWS configuration says of the queue's place."""

    region: str | None = None
    endpoint: str | None = None
    """Its `endpoint_url`, that of SQS before that of all services."""


def no_profile() -> Profile:
    return Profile()


@dataclass(slots=True)
class Resolved:
    """Values of fields as text, and where those come from that are not simply set."""

    held: dict[str, str]
    origins: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """Field → the whole sentence."""


def resolved(
    held: Mapping[str, str], environ: Mapping[str, str], profile: Callable[[], Profile] = no_profile
) -> Resolved:
    """`held` (field → text, as set in the environment), with what follows for the queue, its endpoint and its region."""
    found = Resolved(dict(held))
    _queue(found)
    address = _address(found.held.get("sqs_queue_url"))
    _endpoint(found, address, environ, profile)
    _region(found, address, environ, profile)
    _cross_checks(found, address, environ)
    if address is not None and address.url is not None and is_aws(found.held.get("aws_endpoint", DEFAULT_ENDPOINT)):
        found.held["sqs_queue_url"] = address.url
        if held.get("sqs_queue_url", "").startswith("arn:"):
            found.origins["sqs_queue_url"] = "the ARN"
    return found


def _queue(found: Resolved) -> None:
    short = found.held.pop("sqs_queue", None)
    if short is None:
        return
    long = found.held.setdefault("sqs_queue_url", short)
    if long != short:
        found.faults["sqs_queue"] = "SQS_QUEUE and SQS_QUEUE_URL name two queues; unset one of them"
    else:
        found.origins["sqs_queue_url"] = "SQS_QUEUE"


def _address(text: str | None) -> QueueAddress | None:
    try:
        return queue_address(text) if text is not None else None
    except ValueError:
        return None  # told by the check of the setting


def _endpoint(
    found: Resolved, address: QueueAddress | None, environ: Mapping[str, str], profile: Callable[[], Profile]
) -> None:
    if "aws_endpoint" in found.held:
        return
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").strip().lower() != "true":
        for name in ("AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"):
            if text := environ.get(name, "").strip():
                found.held["aws_endpoint"], found.origins["aws_endpoint"] = text, name
                return
        if text := (profile().endpoint or "").strip():
            found.held["aws_endpoint"], found.origins["aws_endpoint"] = text, "the profile's endpoint_url"
            return
    if "sqs_queue_url" in found.held:
        follows = address.endpoint if address is not None else None
        found.held["aws_endpoint"] = follows or ""
        found.origins["aws_endpoint"] = "the queue" if follows is not None else "the region"


def _region(
    found: Resolved, address: QueueAddress | None, environ: Mapping[str, str], profile: Callable[[], Profile]
) -> None:
    named = address.region if address is not None else None
    if "aws_region" in found.held:
        if named is not None and named != found.held["aws_region"]:
            found.faults["aws_region"] = (
                f"AWS_REGION holds {found.held['aws_region'][:50]!r}, and SQS_QUEUE_URL names a queue in {named!r}; unset "
                f"AWS_REGION, or set it to {named}"
            )
        return
    candidates: list[tuple[str, Callable[[], str | None]]] = [
        ("the queue", lambda: named),
        ("AWS_DEFAULT_REGION", lambda: environ.get("AWS_DEFAULT_REGION", "").strip()),
        ("the profile", lambda: profile().region),
    ]
    for origin, look in candidates:
        if text := look():
            found.held["aws_region"], found.origins["aws_region"] = text, origin
            return


def _cross_checks(found: Resolved, address: QueueAddress | None, environ: Mapping[str, str]) -> None:
    if "sqs_queue_url" not in found.held and is_aws(found.held.get("aws_endpoint", DEFAULT_ENDPOINT)):
        is_set = "is empty" if "SQS_QUEUE_URL" in environ else "is not set"
        found.faults["sqs_queue_url"] = (
            f"SQS_QUEUE_URL {is_set} while the endpoint is AWS itself; it must be the queue's URL, ARN or name"
        )
    owner = found.held.get("sqs_queue_owner")
    if owner is not None and address is not None and address.account not in (None, owner):
        found.faults["sqs_queue_owner"] = (
            f"SQS_QUEUE_OWNER holds {owner[:20]!r}, and SQS_QUEUE_URL names a queue of {address.account}; unset it"
        )
