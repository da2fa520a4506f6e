"""One call to SQS: bounded in time, and whatever goes wrong with it is one plain `QueueError` that says whose fault it is.

A transport (`aws_client.py`) offers a `Call`, which answers with a JSON object or raises: `ErrorAnswer` and `OddAnswer` where
SQS, or something in its place, has answered; anything at all where nobody has. `ask()` is the border: nothing else comes out of
it but the object and `QueueError`. It is not a list of known exceptions, because a library raises what it likes when it reads
what nobody foresaw: what is not known by name is told by its type and place.

Never logs or raises anything that holds a secret: errors of libraries hold requests, so they are cut off (`from None`).
"""

import ssl
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import trio
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from svc.consumer.queue import NoAnswer, QueueError, QueueMisconfigured, QueueTimeout, QueueUnavailable
from svc.sqs import answers
from svc.sqs.running_time import RunningTime
from svc.sqs.wire import CALL_SECONDS

_UNREADABLE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ssl.SSLError)
"""What reading certificates raises."""

Call = Callable[..., Awaitable[dict[str, Any]]]
"""`await call("receive_message", QueueUrl=…)`: one call of one client."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One client to open, with connections of its own."""

    connections: int
    """Calls at once; a call beyond them waits for one to end, within its own deadline."""
    attempts: int = 2
    """Two by default: a connection that the server has closed meanwhile is no error worth reporting."""


async def ask(
    call: Call,
    doing: str,
    operation: str,
    *,
    seconds: float = CALL_SECONDS,
    then: str = "it may have acted all the same",
    what: str = "SQS_QUEUE_URL",
    message: bool = False,
    clock: RunningTime | None = None,
    **request: Any,
) -> dict[str, Any]:
    """The JSON object that SQS answers; raises `QueueError`, and nothing else.

    `doing` names the call in errors, `what` what holds the queue's address; `message`: it sends a message, whose fault an error
    may be. `clock`: what counts the seconds, if not Trio's clock. No checkpoint comes after the answer.
    """
    try:
        with clock.move_on_after(seconds) if clock else trio.CancelScope(relative_deadline=seconds):
            return await call(operation, **request)
    except trio.TooSlowError:
        pass
    except QueueError:
        raise
    except (answers.ErrorAnswer, answers.OddAnswer) as error:
        raise answers.failure(doing, error, what=what, message=message) from None
    except boto.ClientError as error:
        raise answers.failure(doing, _of_client(error), what=what, message=message) from None
    except Exception as error:
        raise _transport_error(doing, error, then) from None
    raise QueueTimeout(f"{doing}: SQS did not answer within {seconds:g} s; {then}")


def _of_client(error: boto.ClientError) -> answers.ErrorAnswer:
    told = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return answers.ErrorAnswer(status, str(told.get("Code", "")), str(told.get("Message", "")))


def _transport_error(doing: str, error: Exception, then: str) -> QueueError:
    """The `QueueError` for a call that got no answer from SQS."""
    url = str(getattr(error, "kwargs", {}).get("endpoint_url") or "")
    parts = urlsplit(url)
    endpoint = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "the endpoint"
    match error:
        case boto.NoCredentialsError() | boto.PartialCredentialsError():
            return QueueMisconfigured(
                f"{doing}: there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this "
                "machine a role (an emulator takes any)"
            )
        case boto.CredentialRetrievalError() | boto.MetadataRetrievalError() | boto.InvalidIMDSEndpointError():
            return QueueUnavailable(f"{doing}: the AWS credentials could not be fetched ({type(error).__name__})")
        case boto.SSOError() | boto.TokenRetrievalError() | boto.NoAuthTokenError():
            return QueueMisconfigured(f"{doing}: the AWS login has expired ({type(error).__name__}); log in again")
        case boto.SSLError():
            return QueueMisconfigured(
                f"{doing}: no TLS connection to {endpoint}; check AWS_ENDPOINT, and that its certificate is trusted"
            )
        case boto.ReadTimeoutError():
            return QueueTimeout(f"{doing}: {endpoint} did not answer in time; {then}")
        case boto.ProxyConnectionError():
            return _proxy_error(doing, "")
        case boto.ConnectTimeoutError() | boto.EndpointConnectionError():
            # With a proxy every connection is one to the proxy: one that fails says nothing of the endpoint.
            if proxy := get_environ_proxies(url).get(parts.scheme):
                return _proxy_error(doing, str(proxy))
            return QueueUnavailable(
                f"{doing}: {endpoint} cannot be reached; check that it is up, and AWS_ENDPOINT and AWS_REGION"
            )
        case boto.HTTPClientError(kwargs={"error": OSError() as inner}) if isinstance(inner, _UNREADABLE):
            return QueueMisconfigured(
                f"{doing}: the certificates for TLS cannot be read ({_os_error(inner)}); check AWS_CA_BUNDLE"
            )
        case boto.HTTPClientError():
            return NoAnswer(f"{doing}: the connection to SQS broke before the answer was complete; {then}")
        case ResponseParserError():
            return answers.failure(doing, answers.OddAnswer("it cannot be read"))
        case boto.ParamValidationError():
            return QueueError(f"{doing}: {error}")
        case _:
            return NoAnswer(
                f"{doing}: the call failed inside the SQS client ({type(error).__name__}{_place(error)}); {then}"
            )


def _proxy_error(doing: str, proxy: str) -> QueueUnavailable:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host = f" {parts.scheme}://{parts.netloc.rpartition('@')[2]}" if proxy else ""
    return QueueUnavailable(
        f"{doing}: the HTTP proxy{host} cannot be reached; check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
    )


def _os_error(error: OSError) -> str:
    return str(error) if error.filename or not error.strerror else f"{type(error).__name__}: {error.strerror}"


def _place(error: Exception) -> str:
    """Where it was raised: for whoever looks for what nobody foresaw. No values, which may be secrets."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}" if frames else ""
