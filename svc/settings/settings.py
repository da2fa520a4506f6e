"""Every setting of the service: its variable, default, unit, range and one sentence about it.

`loading.py` reads them from a mapping of variables. The table of settings in the documents is held to this file by a test.
`values.py` has the forms that values may have.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from svc.settings.resolution import DEFAULT_ENDPOINT, DEFAULT_QUEUE, resolved
from svc.settings.values import (
    Address,
    DatabaseUrl,
    Endpoints,
    FileToCome,
    HttpUrlOrEmpty,
    Lower,
    Names,
    Namespace,
    PauseRange,
    PemFile,
    Queue,
    Seconds,
    SecondsRange,
    SecondsRangeOrOff,
    SecretFile,
    ShareOrOff,
    Whole,
)


def _setting(default: Any, may_hold: str, meaning: str, **constraints: Any) -> Any:
    """One setting. `may_hold` completes "must be …" in errors; `default` is written as in the environment and validated."""
    return Field(
        default, description=meaning, json_schema_extra={"may_hold": may_hold}, validate_default=True, **constraints
    )


_PLACE = ("sqs_queue_url", "sqs_queue", "sqs_queue_owner", "aws_endpoint", "aws_region")


class Settings(BaseModel):
    """The service's settings. Times are seconds. Made by `load()` from environment variables, or by keyword in Python."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _follow_the_queue(cls, given: Any) -> Any:
        """The endpoint and the region of the queue, where only the queue is given."""
        texts = {name: given[name] for name in _PLACE if isinstance(given.get(name), str)}
        return {**given, **resolved(texts, {}).held} if "sqs_queue_url" in texts or "sqs_queue" in texts else given

    sqs_queue_url: Queue = _setting(
        DEFAULT_QUEUE, "an http(s) URL that ends in the queue's name, without user, query and %; an ARN; or a name",
        "the queue: its URL, ARN or name",
    )  # fmt: skip
    sqs_queue: Queue | None = _setting(
        None, "as SQS_QUEUE_URL", "the same as SQS_QUEUE_URL, for those who have a name or an ARN"
    )
    sqs_queue_owner: str | None = _setting(
        None, "an AWS account's 12 digits", "the account of a queue that is given by name and belongs to another",
        pattern=r"^[0-9]{12}$",
    )  # fmt: skip
    aws_endpoint: HttpUrlOrEmpty = _setting(
        DEFAULT_ENDPOINT, "an http(s) URL without user, or empty for AWS itself",
        "SQS endpoint; empty means AWS itself. Unset: `AWS_ENDPOINT_URL_SQS`, `AWS_ENDPOINT_URL`, the profile's `endpoint_url`, "
        "what follows from the queue's URL or ARN; the default goes with the default queue only",
    )  # fmt: skip
    aws_region: str = _setting(
        "us-east-1", "a region's name such as eu-central-1",
        "region of the queue. Unset: that of its URL or ARN, `AWS_DEFAULT_REGION`, the profile's",
        pattern=r"^[a-z0-9-]{2,40}$",
    )  # fmt: skip
    sqs_role_arn: str | None = _setting(
        None, "the ARN of an IAM role", "a role to assume for the queue, on top of the credentials that there are",
        pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$", max_length=600,
    )  # fmt: skip
    sqs_role_session_name: str = _setting(
        "svc", "2 to 64 letters, digits and _ + = , . @ -", "how CloudTrail names us in that role",
        pattern=r"^[A-Za-z0-9_+=,.@-]+$", min_length=2, max_length=64,
    )  # fmt: skip
    sqs_role_external_id: str | None = _setting(
        None, "2 to 1224 letters, digits and _ + = , . @ : / -, together with SQS_ROLE_ARN",
        "what the role's trust policy asks for as sts:ExternalId", pattern=r"^[A-Za-z0-9_+=,.@:/-]+$", min_length=2,
        max_length=1224,
    )  # fmt: skip
    sqs_transport: Annotated[Literal["auto", "direct", "asyncio", "native"], Lower] = _setting(
        "auto", "auto, direct, asyncio or native",
        "how SQS is called: directly, or by the AWS SDK (asyncio, or its experimental native back end); auto: directly wherever "
        "that can serve",
    )  # fmt: skip
    etcd_endpoints: Endpoints = _setting(
        "etcd:2379", "host:port, or several separated by commas, all with https:// or none; or off",
        "etcd members; all are tried. https:// asks for TLS, with the system's authorities if there is no ETCD_CA_CERT. off: "
        "this instance runs by itself and belongs to no fleet",
    )  # fmt: skip
    etcd_username: str | None = _setting(None, "a name, together with ETCD_PASSWORD", "etcd user")
    etcd_password: SecretStr | None = _setting(None, "a password, together with ETCD_USERNAME", "etcd password")
    etcd_ca_cert: PemFile = _setting(
        None, "the path of a PEM file that can be read",
        "certificate authority of etcd's server certificates; switches TLS on",
    )  # fmt: skip
    etcd_cert: PemFile = _setting(
        None, "the path of a PEM file that can be read, together with ETCD_KEY and ETCD_CA_CERT (or https://)",
        "client certificate for etcd",
    )  # fmt: skip
    etcd_key: PemFile = _setting(
        None, "the path of a PEM file that can be read, together with ETCD_CERT and ETCD_CA_CERT (or https://)",
        "key of the client certificate",
    )  # fmt: skip
    maintenance_key: str = _setting(
        "/maintenance/sqs-service", "a key of 1 to 1000 characters", "the etcd key that is watched",
        min_length=1, max_length=1000,
    )  # fmt: skip
    maintenance_file: FileToCome = _setting(
        None, "the path of a file, there or to come, in a folder that is there; together with ETCD_ENDPOINTS=off",
        "without etcd: a file that holds what the key would, and is watched",
    )  # fmt: skip
    instance_id: str | None = _setting(
        None, "1 to 100 letters, digits, - . and _",
        "name in the fleet. Unset: the ECS task's id, or the pod's name; else made of the host's name, the pid and a random part",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
    )  # fmt: skip
    instance_ttl: Seconds = _setting(
        "10s", "a duration from 5s to 10m", "how long etcd lists an instance that it does not hear of", ge=5, le=600
    )
    http_host: Address = _setting(
        "127.0.0.1", "an address to listen on", "where the API listens; `::` is every address, those of IPv4 too", min_length=1
    )  # fmt: skip
    http_port: Whole = _setting(
        "8082", "a port from 0 to 65535", "where the API listens; 0 picks a free one and logs it", ge=0, le=65535
    )
    http_max_connections: Whole = _setting(
        "500", "a whole number from 1 to 100000",
        "connections to the API at once; beyond them those that wait longest for their client are closed", ge=1, le=100_000,
    )  # fmt: skip
    ready_in_maintenance: Annotated[Literal["true", "false"], Lower] = _setting(
        "false", "true or false",
        "whether `/health/ready` answers 200 in maintenance too, so that a rollout during a maintenance goes on",
    )  # fmt: skip
    ecs_task_protection: Annotated[Literal["on", "off"], Lower] = _setting(
        "off", "on or off",
        "on: asks the agent of ECS to protect this task from scale-in and deployments while messages are in flight",
    )  # fmt: skip
    api_token: SecretStr | None = _setting(
        None, "at least 8 characters, none of them a blank", "bearer token that every request that changes something needs",
    )  # fmt: skip
    sqs_max_number_of_messages: Whole = _setting(
        "10", "a whole number from 1 to 10", "messages per receive", ge=1, le=10
    )
    sqs_wait_time_seconds: Whole = _setting(
        "20", "a whole number of seconds from 0 to 20",
        "long-poll wait; capped so that an outstanding receive always lands within the drain", ge=0, le=20,
    )  # fmt: skip
    sqs_dlq_name: str | None = _setting(
        None, "a queue name of 1 to 80 letters, digits, - and _ (and .fifo at the end)",
        "dead-letter queue that `svc init` sets up", pattern=r"^[A-Za-z0-9_-]{1,80}(\.fifo)?$",
    )  # fmt: skip
    sqs_max_receive_count: Whole = _setting(
        "5", "a whole number from 1 to 1000", "receives before the dead-letter queue, for `svc init`", ge=1, le=1000
    )
    sqs_visibility_timeout_seconds: Whole = _setting(
        "30", "a whole number of seconds from 1 to 43200",
        "lease on a received message; extended while the message is worked on", ge=1, le=43_200,
    )  # fmt: skip
    retry_backoff: SecondsRangeOrOff = _setting(
        "5s-15m", "two durations from 1s to 12h such as 5s-15m, or off",
        "how long a failed message stays invisible: the first duration after its first receive, doubled with each further one up "
        "to the second, and of that a random half to whole; off: until its visibility timeout ends",
    )  # fmt: skip
    breaker_failures: ShareOrOff = _setting(
        "90% of 30", "a share of a number such as 90% of 30 (1% to 100%, 1 to 100000), or off",
        "the share of the processor's runs within BREAKER_WINDOW that has to fail, of at least so many, for receiving to pause",
    )  # fmt: skip
    breaker_window: Seconds = _setting(
        "60s", "a duration from 1s to 1h", "over which failures are counted", ge=1, le=3600
    )
    breaker_pause: PauseRange = _setting(
        "10s-5m", "two durations from 1s to 12h such as 10s-5m",
        "how long receiving pauses before a few messages are tried: the first duration, doubled up to the second while those "
        "fail, and of that a random half to whole",
    )  # fmt: skip
    sqs_poll_interval: Seconds = _setting(
        "1s", "a duration from 10ms to 1h",
        "pause after a receive that returned nothing while SQS_WAIT_TIME_SECONDS=0, and the first pause after an error",
        ge=0.01, le=3600,
    )  # fmt: skip
    sqs_max_receivers: Whole = _setting(
        "10", "a whole number from 1 to 50", "receives at once under load; one when there is little", ge=1, le=50
    )
    sqs_batch_linger: Seconds = _setting(
        "0.1s", "a duration from 0 to 5s", "how long a delete or release may wait for others to share its request with",
        ge=0, le=5,
    )  # fmt: skip
    drain_timeout: Seconds = _setting(
        "30s", "a duration from 1s to 12h",
        "how long in-flight work may take after maintenance starts or a stop is asked for", ge=1, le=43_200,
    )  # fmt: skip
    max_concurrency: Whole = _setting(
        "100", "a whole number from 1 to 100000", "messages being processed at once in this process", ge=1, le=100_000
    )
    max_in_flight_bytes: Whole = _setting(
        "268435456", "a whole number of bytes from 1048576 to 100000000000",
        "memory that the bodies of messages in flight may take; beyond it nothing more is received", ge=1_048_576,
        le=100_000_000_000,
    )  # fmt: skip
    message_processor: str = _setting(
        "svc.processors:simulated", "module:attribute of a processor", "the user's processor",
        pattern=r"^[^\s:]+:[^\s:]+$",
    )  # fmt: skip
    message_runtime: Annotated[Literal["auto", "trio", "asyncio", "thread"], Lower] = _setting(
        "auto", "auto, trio, asyncio or thread",
        "where a processor runs that does not say it itself (@processor); auto: an async def on Trio, a plain def in threads",
    )  # fmt: skip
    maintenance_handlers: Names = _setting(
        None, "module:attribute, or several separated by commas",
        "async context manager functions that yield a `svc.Handler`: what drains with the rest and stands in every report",
    )  # fmt: skip
    reject_without_dlq: Annotated[Literal["fail", "delete"], Lower] = _setting(
        "fail", "fail or delete",
        "what becomes of a message whose processor raises `Reject` where there is no dead-letter queue: it fails, and comes back "
        "after its back-off; or it is deleted",
    )  # fmt: skip
    simulated_work_seconds: SecondsRange = _setting(
        "1-3", "a duration, or a range of two such as 1-3, up to 12h", "range of the default processor's random work"
    )
    database_url: DatabaseUrl = _setting(
        None,
        "a URL that begins with postgresql://, without a password in its query; in a password, @ is written %40 and / %2F",
        "the PostgreSQL database that processors use (extra `database`); unset: none, and nothing of it is loaded",
    )  # fmt: skip
    database_password: SecretStr | None = _setting(
        None, "a password, together with DATABASE_URL, and not beside DATABASE_PASSWORD_FILE",
        "password for the database, so that it need not stand in the URL",
    )  # fmt: skip
    database_password_file: SecretFile = _setting(
        None, "the path of a file that can be read, together with DATABASE_URL",
        "file with the password for the database; read again for each connection, so that it may be renewed",
    )  # fmt: skip
    database_min_connections: Whole = _setting(
        "1", "a whole number from 0 to 1000, not above DATABASE_MAX_CONNECTIONS",
        "connections to the database that are kept open while there is no maintenance", ge=0, le=1000,
    )  # fmt: skip
    database_max_connections: Whole = _setting(
        "10",
        "a whole number from 1 to 1000",
        "connections to the database at once; who needs one more waits",
        ge=1,
        le=1000,
    )
    database_maintenance_connections: Whole = _setting(
        "0", "a whole number from 0 to 1000, not above DATABASE_MAX_CONNECTIONS",
        "connections to the database that are left in maintenance", ge=0, le=1000,
    )  # fmt: skip
    database_timeout: Seconds = _setting(
        "10s", "a duration from 1s to 5m",
        "how long the database may take: for a new connection, until a connection is free, and for its answer to a health check",
        ge=1, le=300,
    )  # fmt: skip
    database_application_name: str | None = _setting(
        None, "1 to 63 printable ASCII characters",
        "name in the database's `pg_stat_activity`; unset: the instance's, cut to 63 characters", pattern=r"^[ -~]{1,63}$",
    )  # fmt: skip
    inbox_retention: Seconds = _setting(
        "360h", "a duration from 1h to 87600h",
        "how long the inbox remembers that a message is done (exactly_once): longer than the queue and its dead-letter queue "
        "may keep one, which SQS does for up to 14 days", ge=3600, le=315_360_000,
    )  # fmt: skip
    database_failure: Annotated[Literal["retry", "fail"], Lower] = _setting(
        "retry", "retry or fail",
        "what becomes of messages under way when the database goes away: they are given back and tried again after "
        "RETRY_BACKOFF, which the circuit breaker does not count; or they fail",
    )  # fmt: skip
    cloudwatch_namespace: Namespace = _setting(
        None, "1 to 255 letters, digits, blanks and . - _ / # :, not beginning with AWS/ or :",
        "CloudWatch namespace to which the main figures go once a minute; unset: none do",
    )  # fmt: skip
    log_format: Annotated[Literal["console", "json"], Lower] = _setting(
        "console", "console or json", "form of the log lines"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = _setting(
        "info", "debug, info, warning or error", "least level that is logged"
    )


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return field.upper()


def may_hold(field: str) -> str:
    """What the variable may hold, in words."""
    extra = Settings.model_fields[field].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["may_hold"])


def is_secret(field: str) -> bool:
    """Whether the value must never be shown."""
    return "SecretStr" in str(Settings.model_fields[field].annotation)
