"""The AWS SDK: aiobotocore, for SQS where the direct road cannot serve, and for CloudWatch. It takes half a second to import.

`asyncio`   aiobotocore's usual back end, aiohttp, which runs on asyncio, which runs on Trio through trio-asyncio.
`native`    aiobotocore's httpx2 back end, which runs on Trio by itself. The only road on Python 3.14, where trio-asyncio does
            not import. aiobotocore calls it experimental, hence the first one wherever it exists.

Calls can be cut off at any moment, at once; credentials are ours (`credentials.py`), and so are the signatures and the reading of
SQS's answers, whose parser in botocore trusts what it reads.

This is the only file that imports aiobotocore, trio_asyncio and asyncio. It translates no error of a call, and decides nothing
about messages. It never logs more of an error than its type: requests hold signed headers.
"""

import asyncio
import importlib.util
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import trio
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.parsers import AioResponseParserFactory
from aiobotocore.session import AioSession, get_session
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.credentials import ReadOnlyCredentials

from svc.consumer.queue import QueueMisconfigured
from svc.settings import Settings
from svc.sqs import answers
from svc.sqs.access import Service, endpoint_config, endpoint_url
from svc.sqs.calls import Call, Pool
from svc.sqs.credentials import Credentials
from svc.sqs.handover import user_agent
from svc.sqs.signing import Signer, can_sign

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
"""How long making a connection may take."""

CLOSING_SECONDS = 5.0
"""How long closing the clients may take."""

SdkRoad = Literal["asyncio", "native"]
"""How the SDK runs."""


def sdk_road(
    asked: Literal["auto", "direct", "asyncio", "native"],
    python: tuple[int, ...] = sys.version_info[:2],
    installed: Callable[[str], object] = importlib.util.find_spec,
) -> SdkRoad:
    """How the SDK runs on this Python, or as `SQS_TRANSPORT` asks. Raises `QueueMisconfigured` when that road is closed."""
    first: SdkRoad = "asyncio" if python < (3, 14) else "native"
    chosen: SdkRoad = asked if asked in ("asyncio", "native") else first
    if chosen == "asyncio" and first != "asyncio":
        raise QueueMisconfigured(
            "SQS_TRANSPORT=asyncio needs trio-asyncio, which does not run on Python 3.14; leave SQS_TRANSPORT unset"
        )
    if chosen == "native" and installed("httpx2") is None:
        raise QueueMisconfigured("SQS_TRANSPORT=native needs the package httpx2; install svc[native]")
    return chosen


def opened(
    settings: Settings, pools: Sequence[Pool], service: Service, keys: Credentials
) -> AbstractAsyncContextManager[list[Call]]:
    """A client for each pool, closed at the end (within `CLOSING_SECONDS`)."""
    through = _native if sdk_road(settings.sqs_transport) == "native" else _through_asyncio
    return through(settings, pools, service, _session(keys))


class _Signing(AioCredentials):  # type: ignore[misc]
    """`Credentials` as aiobotocore wants to have them. They are there: a call asks for them before it begins."""

    def __init__(self, keys: Credentials) -> None:
        super().__init__("", "", None, method="svc")
        self._keys = keys

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return ReadOnlyCredentials(*self._keys.last)


class _Provider:
    """In the place of aiobotocore's chain of sources."""

    def __init__(self, keys: Credentials) -> None:
        self._keys = keys

    async def load_credentials(self) -> _Signing:
        return _Signing(self._keys)


def _session(keys: Credentials) -> AioSession:
    session = get_session()
    session.register_component("credential_provider", _Provider(keys))
    return session


def _config(session: AioSession, settings: Settings, pool: Pool, **more: Any) -> AioConfig:
    return AioConfig(
        connect_timeout=CONNECT_SECONDS,
        # None: queue.py bounds every call, in time that this process lives through (running_time.py). A time-out here is one
        # timer
        # more for each, which trio-asyncio keeps until it would have fired, even when it was cancelled long before: after an
        # hour of 3600 s time-outs and 500 calls a second there are 1.8 million of them. And a twentieth of the cost.
        read_timeout=None,
        max_pool_connections=pool.connections,
        retries={"mode": "standard", "total_max_attempts": pool.attempts},
        # Requests are made of values that were checked before: by settings.py, api/request_bodies.py and wire.check().
        parameter_validation=False,
        user_agent=user_agent(session),
        **more,
    )


async def _client(session: AioSession, settings: Settings, pool: Pool, service: Service, **more: Any) -> Any:
    """A client, entered. Cut off half-way it leaves nothing open: connections are made by the first call."""
    if service == "sqs":
        use_our_parser(session)
    try:
        client = await session.create_client(
            service,
            region_name=settings.aws_region,
            endpoint_url=endpoint_url(settings, service),
            config=_config(session, settings, pool, **endpoint_config(settings, service), **more),
        ).__aenter__()
        if service == "sqs":  # many calls, of one form
            await _sign_ourselves(client, session)
        return client
    except boto.BotoCoreError as error:
        raise QueueMisconfigured(f"the AWS configuration of this machine cannot be used: {error}") from None
    except OSError as error:  # of the native road; the other one reads certificates within the first call
        raise QueueMisconfigured(f"the certificates for TLS cannot be read ({error}); check AWS_CA_BUNDLE") from None


async def _sign_ourselves(client: Any, session: AioSession) -> None:
    """Let `signing.py` sign, through two of botocore's events: `choose-signer`, which says that botocore need not, and
    `before-sign`, which follows. What is to be signed in another way than Signature Version 4, or has another form than SQS's
    requests have, is left to botocore."""
    credentials = await session.get_credentials()
    signers: dict[str, Signer | None] = {}

    def choose(signature_version: Any, signing_name: str, region_name: str, context: dict[str, Any], **_: Any) -> Any:
        auth_type = context.get("auth_type")
        if signature_version != "v4" or auth_type not in (None, "v4") or client.meta.config.auth_scheme_preference:
            return None
        context["svc_signs_for"] = region_name, signing_name
        return UNSIGNED

    async def sign(request: Any, request_signer: Any, **_: Any) -> None:
        if "svc_signs_for" not in request.context:
            return
        region, service = request.context["svc_signs_for"]
        url = request.url
        if url not in signers:
            signers[url] = Signer(url) if can_sign(url) else None
        signer = signers[url]
        if signer is None or not isinstance(request.data, bytes):
            auth = await request_signer.get_auth_instance(service, region, "v4")
            auth.add_auth(request)
            return
        keys = await credentials.get_frozen_credentials()
        added = signer.headers(
            request.headers.items(), request.data, keys=keys, region=region, service=service, now=datetime.now(UTC)
        )
        for name, value in added.items():
            request.headers[name] = value

    client.meta.events.register_first("choose-signer.sqs", choose)
    client.meta.events.register("before-sign.sqs", sign)


# Native


@asynccontextmanager
async def _native(
    settings: Settings, pools: Sequence[Pool], service: Service, session: AioSession
) -> AsyncIterator[list[Call]]:
    from aiobotocore.httpxsession import HttpxSession  # anyio, which it imports, is there on this road only

    async with AsyncExitStack() as clients:
        calls = []
        for pool in pools:
            # A write or a wait for the pool is bounded by the call's own deadline, like everything else of it.
            client = await _client(
                session,
                settings,
                pool,
                service,
                http_session_cls=HttpxSession,
                connector_args={"write_timeout": None, "pool_timeout": None},
            )
            clients.push_async_callback(_close, client.__aexit__)
            calls.append(_native_call(client))
        yield calls


def _native_call(client: Any) -> Call:
    return lambda operation, **request: getattr(client, operation)(**request)


async def _close(leave: Callable[..., Awaitable[object]]) -> None:
    # Shielded: a close that is itself cancelled leaves sockets open, and stray asyncio errors behind.
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING_SECONDS):
        await leave(None, None, None)


# Through asyncio


@asynccontextmanager
async def _through_asyncio(
    settings: Settings, pools: Sequence[Pool], service: Service, session: AioSession
) -> AsyncIterator[list[Call]]:
    import trio_asyncio  # fails to import on Python 3.14
    from trio_asyncio import aio_as_trio

    class Threads(trio_asyncio.TrioExecutor):  # type: ignore[misc]
        """asyncio's threads (reading certificates, looking up names). trio-asyncio's own wait for the end of the function and
        then forget that they were cancelled, so that a call which was cut off in its first moments went on until its
        `read_timeout`; these are left behind."""

        async def submit(self, function: Callable[..., object], *args: object) -> object:
            return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)

    def call_of(client: Any) -> Call:
        async def call(operation: str, **request: Any) -> dict[str, Any]:
            try:
                answer: dict[str, Any] = await _ended(loop.create_task(getattr(client, operation)(**request)), loop)
            except asyncio.CancelledError:
                # Not ours: Trio's own cancellations arrive as trio.Cancelled. As a BaseException it would end the whole run.
                raise boto.HTTPClientError(error="the call was cut off inside asyncio") from None
            return answer

        return call

    failure: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        # By default a stray asyncio error (an unclosed session, a failing callback) would end the whole run: STACK 2.2.
        loop.set_exception_handler(_log_stray_error)
        loop.set_default_executor(Threads())
        try:
            async with AsyncExitStack() as clients:
                calls = []
                for pool in pools:
                    client = await aio_as_trio(_client)(session, settings, pool, service)
                    clients.push_async_callback(_close, aio_as_trio(client.__aexit__))
                    calls.append(call_of(client))
                yield calls
        except Exception as error:
            failure = error  # raised below: on its way out of the loop it would be wrapped in two groups
    if failure is not None:
        raise failure


async def _ended(task: "asyncio.Task[Any]", loop: asyncio.AbstractEventLoop) -> Any:
    """Wait in Trio for a task of asyncio; returns or raises what it does. Cancelled, it cancels the task, and again every second
    until it ends: asyncio tells of a cancellation once, and a library that swallows it would hold up a drain for ever."""
    waiting = trio.lowlevel.current_task()
    raise_cancelled: Callable[[], object] | None = None

    def cancel() -> None:
        if not task.done():
            task.cancel()
            loop.call_later(1, cancel)

    def on_cancel(raise_it: Callable[[], object]) -> trio.lowlevel.Abort:
        nonlocal raise_cancelled
        raise_cancelled = raise_it
        cancel()
        return trio.lowlevel.Abort.FAILED  # it ends when the task does

    task.add_done_callback(lambda _: trio.lowlevel.reschedule(waiting))
    await trio.lowlevel.wait_task_rescheduled(on_cancel)
    if task.cancelled() and raise_cancelled is not None:
        raise_cancelled()
    return task.result()


def _log_stray_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what asyncio reports and nobody waits for. Only its text and the error's type."""
    error = context.get("exception")
    kind = "" if error is None else f" ({type(error).__name__})"
    log.warning("asyncio: %s%s", context.get("message", "an error without a message"), kind)


# Answers


def use_our_parser(session: AioSession) -> None:
    """Let the clients that this session makes read SQS's answers with `answers.py`."""
    session.register_component("response_parser_factory", _Parsers())


class _Parsers(AioResponseParserFactory):  # type: ignore[misc]
    def create_parser(self, protocol_name: str) -> Any:
        # SQS's alone: the services that give credentials (STS, SSO) speak others.
        return _Parser() if protocol_name == "json" else super().create_parser(protocol_name)


class _Parser:
    """In place of botocore's `JSONParser`."""

    async def parse(self, response: Mapping[str, Any], shape: Any) -> dict[str, Any]:
        if shape is not None and shape.metadata.get("exception"):
            return {}  # the fields of an error that botocore knows: nobody here reads them
        status = response["status_code"]
        headers = {name.lower(): value for name, value in response["headers"].items()}
        told = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        try:
            found = answers.parsed(status, headers, response["body"], may_be_empty=shape is None)
        except answers.ErrorAnswer as error:
            # In botocore's form: it tries some of them again.
            return {"Error": {"Code": error.code, "Message": error.text}, "ResponseMetadata": told}
        return {**found, "ResponseMetadata": told}
