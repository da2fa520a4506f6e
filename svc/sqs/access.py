"""What a request to AWS needs whatever carries it: credentials that hold, the endpoint, and the URL of the queue.

Each transport (`aws_client.py`) offers calls; `with_credentials` and `with_queue_url` stand in front of them, so that a failure
of either is that call's failure, backed off and tried again like any other.
"""

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import botocore.session
import outcome
import trio
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.config import Config

from svc.consumer.queue import QueueMisconfigured
from svc.settings import Settings, is_aws, queue_address
from svc.sqs import answers, wire
from svc.sqs.calls import Call
from svc.sqs.credential_sources import Found, Role, look, who
from svc.sqs.credentials import Credentials

log = logging.getLogger(__name__)

Service = Literal["sqs", "cloudwatch"]


def credentials(settings: Settings, *, introduce: bool = False) -> Credentials:
    """What signs the requests of these settings: `await credentials(settings).current()` before each. `introduce`: say in the
    log, once, as whom AWS knows us (if it may be asked)."""
    role = None
    if settings.sqs_role_arn is not None:
        role = Role(settings.sqs_role_arn, settings.sqs_role_session_name, settings.sqs_role_external_id)
    asks = introduce and (is_aws(settings.aws_endpoint) or bool(os.environ.get("AWS_ENDPOINT_URL_STS")))
    return Credentials(
        partial(look, settings.aws_region, role), on_first=partial(_introduce, settings.aws_region) if asks else None
    )


def _introduce(region: str, found: Found) -> None:
    def deliver(result: outcome.Outcome[str]) -> None:  # in the thread
        match result:
            case outcome.Value(arn):
                log.info("AWS knows us as %s (credentials: %s)", arn, found.source)
            case _:
                log.info("credentials: %s; STS does not say as whom AWS knows us", found.source)

    trio.lowlevel.start_thread_soon(partial(who, found.keys, region), deliver, name="aws-identity")


def endpoint(settings: Settings, service: Service = "sqs") -> str:
    """The URL that requests go to, resolved as the AWS SDKs do (region, FIPS, dual stack, `AWS_ENDPOINT_URL_…`, the profile's).
    Reads files and takes some 0.1 s. Raises `QueueMisconfigured`."""
    return str(sdk_client(settings, botocore.session.Session(), service).meta.endpoint_url)


def sdk_client(settings: Settings, session: Any, service: Service = "sqs") -> Any:
    """A client of the SDK that never calls: it knows where to. Raises `QueueMisconfigured`."""
    try:
        return session.create_client(
            service,
            region_name=settings.aws_region,
            endpoint_url=endpoint_url(settings, service),
            config=Config(signature_version=UNSIGNED, **endpoint_config(settings, service)),
        )
    except (boto.BotoCoreError, ValueError) as error:
        raise unusable(error) from None


def unusable(error: Exception) -> QueueMisconfigured:
    """What botocore raises when it reads its files and variables, for an operator."""
    return QueueMisconfigured(f"the AWS configuration of this machine cannot be used: {error}")


def endpoint_url(settings: Settings, service: Service) -> str | None:
    """What a client is told. SQS's is resolved by `svc.settings`; others are found by botocore."""
    return (settings.aws_endpoint or None) if service == "sqs" else None


def endpoint_config(settings: Settings, service: Service) -> dict[str, bool]:
    """And how it is to look for others: not at all for SQS. A URL is taken as it is, whatever FIPS or dual stack ask for."""
    if service != "sqs":
        return {}
    as_it_is = {"use_fips_endpoint": False, "use_dualstack_endpoint": False} if settings.aws_endpoint else {}
    return {"ignore_configured_endpoint_urls": True, **as_it_is}


def with_credentials(call: Call, keys: Credentials) -> Call:
    """`call` with credentials that hold; an answer that does not accept them makes that they are looked for again."""

    async def signed(operation: str, **request: Any) -> dict[str, Any]:
        used = await keys.current()
        try:
            return await call(operation, **request)
        except (boto.ClientError, answers.ErrorAnswer) as error:
            if wire.refuses_credentials(_code(error)):
                keys.refused(used)
            raise

    return signed


def _code(error: boto.ClientError | answers.ErrorAnswer) -> str:
    if isinstance(error, answers.ErrorAnswer):
        return error.code
    told = error.response.get("Error")
    return str(told.get("Code", "")) if isinstance(told, Mapping) else ""


class QueueUrl:
    """The URL of the queue that is given by name, or by an ARN that is not AWS's own: SQS is asked for it once."""

    def __init__(self, settings: Settings) -> None:
        self.given = settings.sqs_queue_url
        self._address = queue_address(self.given)
        self._owner = settings.sqs_queue_owner or self._address.account
        self._found: str | None = self.given if "://" in self.given else None
        self._one = trio.Lock()

    @property
    def is_known(self) -> bool:
        return self._found is not None

    async def found(self, call: Call) -> str:
        if self._found is None:
            async with self._one:
                if self._found is None:
                    owner = {"QueueOwnerAWSAccountId": self._owner} if self._owner else {}
                    answer = await call("get_queue_url", QueueName=self._address.name, **owner)
                    self._found = answers.queue_url("looking for the queue", answer)
                    log.info("queue %s is %s", self.given, self._found)
        return self._found


def with_queue_url(call: Call, queue: QueueUrl) -> Call:
    """`call`, in whose requests the queue may be named as in the settings."""
    if queue.is_known:
        return call

    async def addressed(operation: str, **request: Any) -> dict[str, Any]:
        if request.get("QueueUrl") == queue.given:
            request["QueueUrl"] = await queue.found(call)
        return await call(operation, **request)

    return addressed
