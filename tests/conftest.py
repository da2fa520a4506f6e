"""What every test stands on: a scrubbed environment, a strict log, and the real processes of the stack, once per
session; with xdist once for all of its workers.

moto and etcd are plain (synchronous) session fixtures: Trio's fixtures live for one test only. Tests share the two
processes and keep apart by `queue_name` and `key_prefix`; whoever kills or freezes a process starts one of their own.
"""

import os

# Some hundred Python processes are started here, by xdist and by the tests: one of them compiles a module, the others load it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import contextlib
import functools
import gc
import itertools
import logging
import signal
from collections.abc import Iterator
from typing import Any, TypeVar

import botocore.session
import hypothesis
import pytest

from svc.devstack.child import start_all
from svc.devstack.stack import Etcd, Moto
from svc.telemetry import logs
from tests import preloaded

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    # Neither aiohttp nor gRPC may go through a proxy to reach this machine.
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
}
_unique = itertools.count(1)

# Half of what Hypothesis tries by itself: each run tries others. `python -m tests.border` and the searches try thousands.
hypothesis.settings.register_profile("half", parent=hypothesis.settings(), max_examples=50)
hypothesis.settings.load_profile("half")

SHARED = "svc_shared"
"""In what xdist gives each worker: where the processes are that its controller has started for all."""
_shared = pytest.StashKey[contextlib.ExitStack]()
_where = pytest.StashKey[dict[str, Any]]()
_C = TypeVar("_C", Moto, Etcd)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expects_errors: ERROR records in the log are part of this test")
    config.addinivalue_line(
        "markers", "contract_endpoint: runs against the SQS endpoint that SVC_CONTRACT_ENDPOINT names"
    )
    config.addinivalue_line(
        "markers", "faults(by_default): a row of the fault suite; without -m faults only a slice runs"
    )
    config.addinivalue_line(
        "markers",
        "slow: bounded, but it wants many processes or seconds; runs with -m slow, or when it is named itself",
    )
    preloaded.shared = getattr(config, "workerinput", {}).get(SHARED, {}).get("forks")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In xdist's controller: how tests are handed out, unless the command line says something else."""
    if config.getoption("dist") != "loadscope":
        return None
    from tests.distribution import FromBothEnds

    config.option.loadscopereorder = False
    return FromBothEnds(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In xdist's controller, before a worker starts."""
    config = node.config
    if _shared not in config.stash:
        moto, etcd = Moto(), Etcd()
        with contextlib.ExitStack() as held:
            start_all(moto, etcd)
            held.callback(moto.stop)
            held.callback(etcd.stop)
            forks = preloaded.Shared()
            held.callback(forks.end)
            config.stash[_shared] = held.pop_all()
            config.stash[_where] = {"moto": moto.port, "etcd": etcd.port, "forks": forks.path}
    node.workerinput[SHARED] = config.stash[_where]


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash.get(_shared, contextlib.ExitStack()).close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """An ordinary run has of each slow proof a slice, which is a test of its own, beside the one that is marked."""
    if hasattr(config, "workerinput"):
        from tests.distribution import in_order

        in_order(items)
    if any(marker in (config.getoption("-m") or "") for marker in ("slow", "faults")):
        return
    named = {argument for argument in config.args if "::" in argument}
    left_out = [
        item
        for item in items
        if item.get_closest_marker("slow")
        and not any(argument.endswith(item.nodeid.split("[")[0]) for argument in named)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is collected stays: no collector of garbage has to walk through all modules, and their tests, while they come in
    (a quarter of a worker's start) or afterwards, for what one test leaves."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_shell() -> None:
    """What tests start has the signals that a shell's foreground gives, however pytest itself was started.

    Under nohup(1), in a script's background or as a service's child some are ignored or blocked, and children inherit it.
    A handler is not inherited: with one that does nothing this process goes on ignoring them. (xdist's controller starts
    only its workers, without this fixture: they ignore what it ignores.)
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@pytest.fixture(scope="session", autouse=True)
def botocores_data_is_read_once() -> Iterator[None]:
    """Each of botocore's sessions reads some megabytes of JSON, its description of AWS. Here those of one path share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the credentials, endpoints or profiles of the machine it runs on."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.name}: {self.format(record)}")


@pytest.fixture(autouse=True)
def strict_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """A record at ERROR or above fails the test, unless it is marked `expects_errors`."""
    logs.through_stdlib()
    errors = _Errors()
    root = logging.getLogger()
    root.addHandler(errors)
    yield
    root.removeHandler(errors)
    if errors.texts and request.node.get_closest_marker("expects_errors") is None:
        pytest.fail("logged at ERROR or above:\n" + "\n".join(errors.texts), pytrace=False)


@pytest.fixture
def log_level_kept() -> Iterator[None]:
    """The level of the log is the whole process's: `info` in this test, and put back afterwards."""
    root = logging.getLogger()
    before = [(logger, logger.level) for logger in (root, *map(logging.getLogger, logs.NOISY + logs.SILENT))]
    root.setLevel("INFO")
    yield
    for logger, held in before:
        logger.setLevel(held)


@pytest.fixture(scope="session")
def moto(request: pytest.FixtureRequest) -> Moto:
    """A local SQS. `moto.url` is its endpoint, `moto.queue_url(name)` a queue's URL. Without xdist it is that of the plugin."""
    return _running(request, Moto)


@pytest.fixture(scope="session")
def etcd(request: pytest.FixtureRequest) -> Etcd:
    """A real etcd. `etcd.endpoint` is its host:port. Without xdist it is that of the plugin."""
    return _running(request, Etcd)


def _running(request: pytest.FixtureRequest, kind: type[_C]) -> _C:
    where = getattr(request.config, "workerinput", {}).get(SHARED)
    if where is None:
        running: _C = request.getfixturevalue(f"svc_{kind.name}")
        return running
    elsewhere = kind()
    elsewhere.port = where[kind.name]
    return elsewhere


@pytest.fixture
def queue_name() -> str:
    """A queue name that no other test uses."""
    return f"q{os.getpid()}-{next(_unique)}"


@pytest.fixture
def key_prefix() -> str:
    """A prefix of etcd keys that no other test uses; ends with a slash."""
    return f"/test/{os.getpid()}/{next(_unique)}/"
