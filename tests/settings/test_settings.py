"""Every variable: its default as SPEC.md promises it, what it takes, and what is said about everything else."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from svc.settings import BadSettings, Settings, is_secret, load, masked, may_hold, seconds, variable

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference" / "settings.md"

# SPEC.md, "Environment", shortened.
SPEC = """
| `SQS_QUEUE_URL` | `http://localstack:4566/000000000000/test-queue` | the queue |
| `AWS_ENDPOINT` | `http://localstack:4566` | SQS endpoint; empty means AWS itself |
| `AWS_REGION` | `us-east-1` | |
| `ETCD_ENDPOINTS` | `etcd:2379` | comma-separated `host:port`; all are tried |
| `ETCD_USERNAME`, `ETCD_PASSWORD`, `ETCD_CA_CERT`, `ETCD_CERT`, `ETCD_KEY` | unset | etcd authentication and TLS |
| `MAINTENANCE_KEY` | `/maintenance/sqs-service` | the key that is watched |
| `HTTP_HOST`, `HTTP_PORT` | `127.0.0.1`, `8082` | where the API listens; port 0 picks a free one |
| `API_TOKEN` | unset | when set, every request that changes something needs `Authorization: Bearer <token>` |
| `SQS_MAX_NUMBER_OF_MESSAGES` | `10` | messages per receive, 1–10 |
| `SQS_WAIT_TIME_SECONDS` | `20` | long-poll wait, 0–20 |
| `SQS_DLQ_NAME`, `SQS_MAX_RECEIVE_COUNT` | unset, `5` | what `svc init` sets up |
| `SQS_VISIBILITY_TIMEOUT_SECONDS` | `30` | lease on a received message, 1–43200 |
| `SQS_POLL_INTERVAL` | `1s` | pause after a receive that returned nothing while `SQS_WAIT_TIME_SECONDS=0` |
| `DRAIN_TIMEOUT` | `30s` | how long in-flight work may take after maintenance starts or a stop is asked for |
| `MAX_CONCURRENCY` | `100` | messages being processed at once in this process |
| `MESSAGE_PROCESSOR` | `svc.processors:simulated` | `module:attribute` of the user's processor |
| `MESSAGE_RUNTIME` | `auto` | for undecorated processors: `trio`, `asyncio`, `thread` |
| `ECS_TASK_PROTECTION` | `off` | scale-in protection while messages are in flight |
| `READY_IN_MAINTENANCE` | `false` | whether readiness is 200 in maintenance |
| `SIMULATED_WORK_SECONDS` | `1-3` | range of the default processor's random work |
| `LOG_FORMAT`, `LOG_LEVEL` | `console`, `info` | `console` or `json` |
"""

# Together with these the certificates and the credentials make sense.
PEM = str(Path(__file__).parent / "authority.pem")
COMPLETE = {"ETCD_CERT": PEM, "ETCD_KEY": PEM, "ETCD_CA_CERT": PEM, "ETCD_USERNAME": "u", "ETCD_PASSWORD": "p"}
NO_PEM = ["/nowhere/ca.pem", "/", str(Path(__file__)), "/dev/null", "a\0b"]


def rows(table: str) -> dict[str, str]:
    """Variable → default as written ("" for unset), from the rows of a table."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        names = re.findall(r"`([A-Z][A-Z0-9_]+)`", cells[0]) if len(cells) >= 2 else []
        defaults = [cell.strip().strip("`") for cell in cells[1].split(",")] if names else []
        if len(names) > len(defaults):
            defaults = defaults * len(names)
        elif len(defaults) > len(names):
            defaults = [cells[1].strip("`")]
        found |= {name: "" if default == "unset" else default for name, default in zip(names, defaults, strict=False)}
    return found


DEFAULTS = rows(SPEC)


def faults_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(BadSettings) as raised:
        load(environ)
    assert str(raised.value) == "\n".join(raised.value.faults)
    return raised.value.faults


def test_spec_and_settings_have_the_same_variables() -> None:
    assert len(DEFAULTS) == 24 + 4
    missing = set(DEFAULTS) - {variable(field) for field in Settings.model_fields}
    assert not missing


@pytest.mark.parametrize("name", DEFAULTS)
def test_default(name: str) -> None:
    field = name.lower()
    value = getattr(load({}), field)
    if DEFAULTS[name] == "":
        assert value is None
    else:
        assert value == getattr(load({name: DEFAULTS[name]}), field)
    # And as the table of `svc config` shows it.
    shown = masked(load({}))[name]
    assert shown == DEFAULTS[name]


def test_the_reference_lists_exactly_the_variables_with_their_defaults() -> None:
    listed = rows(REFERENCE.read_text("utf-8"))
    assert listed, "no settings table (rows `| `VARIABLE` | default | meaning |`): run python -m docs.generate"
    assert listed == masked(load({}))


def test_every_setting_is_described() -> None:
    for field, info in Settings.model_fields.items():
        assert info.description
        assert may_hold(field)


# Variable → (what it may hold and what becomes of it, what it may not hold).
VALUES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "SQS_QUEUE_URL": (
        {
            "https://sqs.eu-central-1.amazonaws.com/1/q.fifo": "https://sqs.eu-central-1.amazonaws.com/1/q.fifo",
            "http://x/0/q.fifo/": "http://x/0/q.fifo",
            "http://x/queue/q//": "http://x/queue/q",
            "http://x/q": "http://x/q",
            "orders.fifo": "orders.fifo",
            "arn:aws:sqs:eu-central-1:123456789012:q": "https://sqs.eu-central-1.amazonaws.com/123456789012/q",
        },
        ["http://x/0/q?", "http://x/0/q?a=b", "http://x/0/q#a", "http://x/0/q%2Efifo", "http://x/0/q.fif%6f", "http://x/0\\q",
         "http://x", "http://x/", "http://x/000000000000/", "http://x/0/q\u202e",
         "a queue", "queue.", "q" * 81, "arn:aws:sqs:eu-central-1:1:q",
         "arn:aws:sns:eu-central-1:123456789012:q", "ftp://x/y", "http://",
         "http:///x", "http://x:0/q", "http://x:99999/q", "http://[x/q", "http://a b/q"],
    ),
    "AWS_ENDPOINT": ({"": "", " ": "", "http://[::1]:4566": "http://[::1]:4566"}, ["localhost:4566", "http://", "x"]),
    "SQS_QUEUE_OWNER": ({"123456789012": "123456789012"}, ["1234", "a" * 12]),
    "SQS_ROLE_ARN": (
        {"arn:aws:iam::123456789012:role/path/x": "arn:aws:iam::123456789012:role/path/x"},
        ["x", "arn:aws:iam::123456789012:user/x", "arn:aws:iam::1:role/x", "arn:aws:iam::123456789012:role/" + "x" * 600],
    ),
    "SQS_ROLE_SESSION_NAME": ({"a@b": "a@b"}, ["a", "a b", "a" * 65]),
    "AWS_REGION": ({"eu-central-1": "eu-central-1"}, ["EU", "x", "eu central 1", "eu_1"]),
    "ETCD_ENDPOINTS": (
        {
            "a:1": (("a", 1, False),),
            "a:1,b:65535": (("a", 1, False), ("b", 65535, False)),
            " a:1 , b:2 ": (("a", 1, False), ("b", 2, False)),
            "[::1]:2379": (("::1", 2379, False),),
            "http://a:2379/": (("a", 2379, False),),
            "https://a:2379/,https://[::1]:1": (("a", 2379, True), ("::1", 1, True)),
            "off": (),
            "OFF": (),
        },
        ["a", "a:", ":1", "a:0", "a:65536", "a:1,", ",", "a:1;b:2", "a:x", "::1:2379", "a b:1", "https://a:1,b:1", "http://a:1,https://b:1",
         "off,a:1", "none"],
    ),
    "ETCD_USERNAME": ({"ann": "ann"}, []),
    "ETCD_CA_CERT": ({PEM: PEM}, NO_PEM),
    "ETCD_CERT": ({PEM: PEM}, NO_PEM),
    "ETCD_KEY": ({PEM: PEM}, NO_PEM),
    "ETCD_PASSWORD": ({}, []),
    "MAINTENANCE_KEY": ({"k": "k", "k" * 1000: "k" * 1000}, ["k" * 1001]),
    "HTTP_HOST": ({"0.0.0.0": "0.0.0.0", "::": "::", "[::]": "::", "[::1]": "::1", "localhost": "localhost"}, []),
    "HTTP_PORT": ({"0": 0, "65535": 65535, " 80 ": 80}, ["-1", "65536", "http", "80.0", "8e1", "0x50", "８０"]),
    "API_TOKEN": ({}, ["short", "1234567", "with a blank", "with\ttab-in-it"]),
    "SQS_MAX_NUMBER_OF_MESSAGES": ({"1": 1, "10": 10}, ["0", "11", "ten", "1.0", "-1"]),
    "SQS_WAIT_TIME_SECONDS": ({"0": 0, "20": 20}, ["21", "-1", "20s", "1.5", "never"]),
    "SQS_DLQ_NAME": ({"dead": "dead", "a-b_c.fifo": "a-b_c.fifo"}, ["a b", "a.b", "x" * 81, "é", "a/b"]),
    "SQS_MAX_RECEIVE_COUNT": ({"1": 1, "1000": 1000}, ["0", "1001", "many"]),
    "SQS_VISIBILITY_TIMEOUT_SECONDS": ({"1": 1, "43200": 43200}, ["0", "43201", "30s", "12h"]),
    "RETRY_BACKOFF": (
        {"off": None, "OFF": None, "5s-15m": (5.0, 900.0), "1-12h": (1.0, 43200.0), "30s": (30.0, 30.0)},
        ["on", "0-5", "500ms-5s", "9-5", "1-13h", "-", "1-2-3", "no", "5s–15m"],
    ),
    "BREAKER_FAILURES": (
        {"off": None, "90% of 30": (0.9, 30), "100% of 1": (1.0, 1), "1%of 100000": (0.01, 100_000)},
        ["on", "0% of 30", "101% of 30", "90 of 30", "90%", "90% of 0", "90% of 100001", "-1% of 3", "0.9 of 30"],
    ),
    "BREAKER_WINDOW": ({"1s": 1.0, "1h": 3600.0}, ["0", "999ms", "61m", "off"]),
    "BREAKER_PAUSE": ({"10s-5m": (10.0, 300.0), "5s": (5.0, 5.0)}, ["5-1", "off", "1-13h", "0-5", "-"]),
    "SQS_POLL_INTERVAL": (
        {"1": 1.0, "0.5": 0.5, "10ms": 0.01, "1h": 3600.0},
        ["0", "9ms", "1h1s", "-1s", "soon", "inf", "nan", "1e3"],
    ),
    "DRAIN_TIMEOUT": ({"1s": 1.0, "1m30s": 90.0, "12h": 43200.0, "45": 45.0}, ["0", "999ms", "12h1s", "-30s", "30 s", "1d", "s"]),
    "MAX_CONCURRENCY": ({"1": 1, "100000": 100000}, ["0", "100001", "unlimited", "-5", "1_000", "9" * 5000]),
    "MESSAGE_PROCESSOR": ({"a.b:c.d": "a.b:c.d"}, ["a", "a:", ":b", "a:b:c", "a b:c"]),
    "MAINTENANCE_HANDLERS": ({"a.b:c": ("a.b:c",), "a:b, c:d": ("a:b", "c:d")}, ["a", "a:b,", "a:b c:d", ":b"]),
    "MESSAGE_RUNTIME": ({"auto": "auto", "Asyncio": "asyncio", "trio": "trio", "thread": "thread"}, ["gevent", "uvloop", "3"]),
    "DATABASE_URL": (
        {},
        [
            "http://h/sesame", "h:5432", "postgresql://h/d?password=sesame", "postgresql://h/a b", "mysql://h/d", "postgresql://[h/d",
            "postgresql://u:a@sesame@h/d", "postgresql://u:a/sesame@h/d",
        ],
    ),
    "DATABASE_PASSWORD": ({}, []),
    "DATABASE_PASSWORD_FILE": ({PEM: PEM}, ["/nowhere/password", "/", "/dev/null", "a\0b"]),
    "DATABASE_MIN_CONNECTIONS": ({"0": 0, "10": 10}, ["-1", "1001", "11", "one"]),
    "DATABASE_MAX_CONNECTIONS": ({"1": 1, "1000": 1000}, ["0", "1001", "many"]),
    "DATABASE_MAINTENANCE_CONNECTIONS": ({"0": 0, "10": 10}, ["-1", "1001", "11"]),
    "DATABASE_TIMEOUT": ({"1s": 1.0, "5m": 300.0}, ["0", "999ms", "301s", "off"]),
    "DATABASE_APPLICATION_NAME": ({"orders": "orders"}, ["é", "a" * 64]),
    "DATABASE_FAILURE": ({"retry": "retry", "Fail": "fail"}, ["reject", "off"]),
    "ECS_TASK_PROTECTION": ({"on": "on", "OFF": "off"}, ["yes", "true", "1"]),
    "READY_IN_MAINTENANCE": ({"true": "true", "FALSE": "false"}, ["yes", "on", "1"]),
    "SIMULATED_WORK_SECONDS": (
        {"1-3": (1.0, 3.0), "2": (2.0, 2.0), "0": (0.0, 0.0), "100ms-1.5s": (0.1, 1.5), "1 - 3": (1.0, 3.0)},
        ["3-1", "-1", "1-", "-", "1-2-3", "a-b", "0-43201", "1–3"],
    ),
    "LOG_FORMAT": ({"json": "json", "JSON": "json", "Console": "console"}, ["xml", "text"]),
    "LOG_LEVEL": ({"debug": "debug", "INFO": "info", "Warning": "warning", "error": "error"}, ["verbose", "10", "warn"]),
}  # fmt: skip

# Whatever else comes to be a variable belongs into the table above.
GOOD = [(name, text, value) for name, (good, _) in VALUES.items() for text, value in good.items()]
BAD = [(name, text) for name, (_, bad) in VALUES.items() for text in bad]


def test_every_variable_of_the_spec_is_tried() -> None:
    assert set(VALUES) >= set(DEFAULTS)


@pytest.mark.parametrize(("name", "text", "value"), GOOD, ids=lambda value: str(value)[:30])
def test_good_value(name: str, text: str, value: object) -> None:
    more = COMPLETE if name.startswith("ETCD_") and name != "ETCD_ENDPOINTS" else {}
    more = {"DATABASE_URL": "postgresql://h/d"} if name.startswith("DATABASE_PASS") else more
    more = {"SQS_QUEUE_URL": "http://x/0/q"} if name == "AWS_ENDPOINT" else more  # the default queue is none of AWS's
    assert getattr(load({**more, name: text}), name.lower()) == value


@pytest.mark.parametrize(("name", "text"), BAD, ids=lambda value: str(value)[:30])
def test_bad_value(name: str, text: str) -> None:
    more = {other: held for other, held in COMPLETE.items() if other != name} if name.startswith("ETCD_C") else {}
    more = {"DATABASE_URL": "postgresql://h/d"} if name.startswith("DATABASE_PASS") else more
    (fault,) = faults_of({**(COMPLETE if name == "ETCD_KEY" else more), name: text})
    assert fault.startswith(f"{name} ")
    assert fault.endswith(f"; it must be {may_hold(name.lower())}")
    if name in SECRETS:
        assert text not in fault
    else:
        assert f"holds {text.strip()[:200]!r}" in fault
    assert "\n" not in fault
    assert len(fault) < 500
    assert "pydantic" not in fault


def test_every_fault_is_told_at_once() -> None:
    environ = {name: bad[0] for name, (_, bad) in VALUES.items() if bad}
    faults = faults_of(environ)
    assert [fault.split()[0] for fault in faults] == [
        name for name in map(variable, Settings.model_fields) if name in environ
    ]


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (["ETCD_USERNAME"], ["ETCD_PASSWORD"]),
        (["ETCD_PASSWORD"], ["ETCD_USERNAME"]),
        (["ETCD_CERT", "ETCD_CA_CERT"], ["ETCD_KEY"]),
        (["ETCD_KEY", "ETCD_CA_CERT"], ["ETCD_CERT"]),
        (["ETCD_CERT", "ETCD_KEY"], ["ETCD_CA_CERT"]),
        (["ETCD_CERT"], ["ETCD_CA_CERT", "ETCD_KEY"]),
        (["ETCD_CA_CERT"], []),
        (["ETCD_CERT", "ETCD_KEY", "ETCD_ENDPOINTS"], []),
    ],
)
def test_what_belongs_together(held: list[str], missing: list[str]) -> None:
    environ = {name: COMPLETE.get(name, "https://etcd:2379") for name in held}
    if not missing:
        load(environ)
        return
    faults = faults_of(environ)
    assert sorted(fault.split()[0] for fault in faults) == missing
    assert all(" is not set; it must be " in fault for fault in faults)


def test_a_file_for_the_switch_goes_without_etcd_only(tmp_path: Path) -> None:
    path = str(tmp_path / "to-come")
    settings = load({"ETCD_ENDPOINTS": "Off", "MAINTENANCE_FILE": path})
    assert (settings.maintenance_file, settings.etcd_endpoints) == (path, ())
    assert masked(settings)["ETCD_ENDPOINTS"] == "off"
    for environ in ({}, {"ETCD_ENDPOINTS": "a:1"}):
        (fault,) = faults_of({**environ, "MAINTENANCE_FILE": path})
        assert fault == f"MAINTENANCE_FILE holds {path!r}; it must be {may_hold('maintenance_file')}"
    for text in (str(tmp_path), "/nowhere/at/all", "a\0b", "/"):
        (fault,) = faults_of({"ETCD_ENDPOINTS": "off", "MAINTENANCE_FILE": text})
        assert fault.startswith("MAINTENANCE_FILE holds ")


@pytest.mark.parametrize(
    ("held", "fault"),
    [
        ({"DATABASE_PASSWORD": "x"}, "DATABASE_URL is not set"),
        ({"DATABASE_PASSWORD_FILE": PEM}, "DATABASE_URL is not set"),
        (
            {"DATABASE_URL": "postgresql://h/d", "DATABASE_PASSWORD": "x", "DATABASE_PASSWORD_FILE": PEM},
            "DATABASE_PASSWORD holds an unusable value (not shown); it must be a password, together with DATABASE_URL, and not "
            "beside DATABASE_PASSWORD_FILE",
        ),
        ({"DATABASE_MIN_CONNECTIONS": "3", "DATABASE_MAX_CONNECTIONS": "2"}, "DATABASE_MIN_CONNECTIONS holds '3'"),
        ({"DATABASE_MIN_CONNECTIONS": "0", "DATABASE_MAX_CONNECTIONS": "2", "DATABASE_MAINTENANCE_CONNECTIONS": "3"},
         "DATABASE_MAINTENANCE_CONNECTIONS holds '3'"),
    ],
)  # fmt: skip
def test_settings_of_the_database_that_contradict_each_other(held: dict[str, str], fault: str) -> None:
    (told,) = faults_of(held)
    assert told.startswith(fault)


def test_an_empty_variable_counts_as_unset_except_for_the_endpoint() -> None:
    empty = dict.fromkeys(DEFAULTS, "") | {"SQS_QUEUE_URL": "http://x/0/q"}
    expected = load({}).model_copy(update={"aws_endpoint": "", "sqs_queue_url": "http://x/0/q"})
    assert load(empty) == expected
    assert load(dict.fromkeys(empty, "  ") | {"SQS_QUEUE_URL": "http://x/0/q "}) == expected


def test_variables_of_others_are_no_business_of_ours() -> None:
    assert load({"PATH": "/bin", "AWS_ACCESS_KEY_ID": "x", "ETCD_DATA_DIR": "/x", "http_port": "9"}) == load({})


def test_settings_by_keyword() -> None:
    assert Settings(http_port=0, drain_timeout="3s") == load({"HTTP_PORT": "0", "DRAIN_TIMEOUT": "3"})  # type: ignore[arg-type]
    assert Settings(drain_timeout=2.5).drain_timeout == 2.5
    with pytest.raises(ValueError, match="nothing"):
        Settings(nothing=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="frozen"):
        Settings().http_port = 3  # type: ignore[misc]


# -- durations --


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30), ("0.5", 0.5), (".5", 0.5), ("5.", 5), ("500ms", 0.5), ("30s", 30), ("1m30s", 90), ("1h", 3600),
        ("1h2m3s4ms", 3723.004), ("1.5m", 90), ("250us", 0.00025), ("250µs", 0.00025), ("1000000000ns", 1), ("0s", 0),
    ],
)  # fmt: skip
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@given(st.text(max_size=8) | st.from_regex(r"[0-9.]{0,4}(ms|s|m|h|d)?", fullmatch=True))
@example("")
@example("1 s")
@example("-1s")
@example("+1s")
@example("1e3")
@example("٣")
@example("1S")
@example("s")
@example(".")
@example("1m30")
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    number = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
    if re.fullmatch(number, text) or re.fullmatch(rf"({number}(ns|us|µs|ms|s|m|h))+", text):
        assert isinstance(seconds(text), float)
    else:
        with pytest.raises(ValueError, match="not a duration"):
            seconds(text)


@given(
    st.dictionaries(
        st.sampled_from(list(DEFAULTS)), st.text(max_size=30).filter(lambda text: "\0" not in text), max_size=4
    )
)
def test_any_environment_gives_settings_or_faults(environ: dict[str, str]) -> None:
    try:
        loaded = load(environ)
    except BadSettings as bad:
        told = bad
    else:
        masked(loaded)
        return
    for fault in told.faults:
        assert fault.split()[0] in DEFAULTS
        assert "\n" not in fault


# -- secrets --

SECRETS = {
    "ETCD_PASSWORD": "sesame-open-now",
    "API_TOKEN": "a-token-nobody-knows",
    "DATABASE_URL": "postgresql://ann:between@db:5432/orders",
    "DATABASE_PASSWORD": "word-of-the-database",
}
SHOWN_IN_PART = {"DATABASE_URL": "postgresql://********@db:5432/orders"}


def test_the_secrets_are_these() -> None:
    assert {variable(field) for field in Settings.model_fields if is_secret(field)} == set(SECRETS)


def test_secrets_are_never_shown() -> None:
    settings = load({**SECRETS, "ETCD_USERNAME": "ann"})
    for text in (repr(settings), str(settings), str(masked(settings)), settings.model_dump_json()):
        for secret in SECRETS.values():
            assert secret not in text
    assert {name: masked(settings)[name] for name in SECRETS} == dict.fromkeys(SECRETS, "********") | SHOWN_IN_PART
    assert "between" not in str(masked(settings))
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == SECRETS["API_TOKEN"]


def test_secrets_are_not_in_faults() -> None:
    for fault in faults_of({"API_TOKEN": "pass word", "ETCD_PASSWORD": "sesame-open-now"}):
        assert "pass word" not in fault
        assert "sesame" not in fault


@pytest.mark.parametrize("variable", ["SQS_QUEUE_URL", "AWS_ENDPOINT", "ETCD_ENDPOINTS"])
@pytest.mark.parametrize(
    "value",
    ["http://ann:sesame@sqs:4566/0/q", "http://ann:sesame@sqs:99999/0/q", "ftp://ann:sesame@x", "https:/ann:sesame@x/0/q",
     "https:ann:sesame@x", "ann:sesame@x:1", "http://ann:p@sesame@x/0/q", "http://ann:ses/sesame@x/0/q"],
)  # fmt: skip
def test_a_user_in_a_url_is_refused_and_not_shown(variable: str, value: str) -> None:
    [fault] = faults_of({variable: value})
    assert variable in fault
    assert "sesame" not in fault
    assert "ann" not in fault.split(";")[0]


def test_config_can_be_read_back() -> None:
    """What `svc config` prints is itself an environment."""
    settings = load(
        {"ETCD_ENDPOINTS": "https://a:1,https://[::1]:2", "SIMULATED_WORK_SECONDS": "100ms-2", "DRAIN_TIMEOUT": "1m30s"}
    )
    assert load(masked(settings)) == settings


@pytest.mark.parametrize(
    ("variable", "given", "shown"),
    [
        ("INBOX_RETENTION", "1296000", "360h"),
        ("INBOX_RETENTION", "5400", "90m"),
        ("INBOX_RETENTION", "4000", "4000s"),
        ("BREAKER_WINDOW", "60s", "1m"),
        ("DRAIN_TIMEOUT", "1m30s", "90s"),
        ("SQS_BATCH_LINGER", "0", "0s"),
        ("SQS_BATCH_LINGER", "100ms", "0.1s"),
        ("RETRY_BACKOFF", "90s-12h", "90s-12h"),
        ("SIMULATED_WORK_SECONDS", "60-3600", "60-3600"),
    ],
)
def test_a_duration_is_shown_in_its_largest_whole_unit(variable: str, given: str, shown: str) -> None:
    settings = load({variable: given})
    assert masked(settings)[variable] == shown
    assert load(masked(settings)) == settings
