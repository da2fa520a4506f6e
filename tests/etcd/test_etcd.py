"""The switch in etcd, against real etcd processes: nothing missed, whatever happens to etcd, and nothing left
behind."""

import contextlib
import datetime
import ipaddress
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from svc.devstack.stack import Etcd, etcd_binary
from svc.etcd import connection as etcd_connection
from svc.etcd import watcher as subject
from svc.etcd.tls import password_in_the_open
from svc.etcd.watcher import EtcdError, KeyWatcher
from svc.settings import Settings, load


def settings(endpoints: str, key: str = "/m", **more: str) -> Settings:
    return load({"ETCD_ENDPOINTS": endpoints, "MAINTENANCE_KEY": key, **{k.upper(): v for k, v in more.items()}})


def etcdctl(etcd: Etcd, *words: str) -> str:
    command = [etcd_binary("etcdctl"), f"--endpoints={etcd.endpoint}", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def ctl(etcd: Etcd, *words: str) -> str:
    return await trio.to_thread.run_sync(etcdctl, etcd, *words)


async def blocking(function: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(function)


class Seen:
    """What a watcher handed over, and waiting for it."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.revisions: list[int] = []
        self._changed = trio.Event()

    def __call__(self, value: bytes | None, revision: int) -> None:
        self.values.append(value)
        self.revisions.append(revision)
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, value: bytes | None, seconds: float = 5) -> None:
        with trio.fail_after(seconds):
            while not self.values or self.values[-1] != value:
                await self._changed.wait()


@contextlib.asynccontextmanager
async def watching(its: Settings) -> AsyncIterator[tuple[KeyWatcher, Seen]]:
    seen = Seen()
    watcher = KeyWatcher(its, seen)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            await nursery.start(watcher.run)
        yield watcher, seen
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


@pytest.fixture
def own() -> Iterator[Etcd]:
    """An etcd for this test alone, which it may kill or freeze."""
    with Etcd() as running:
        yield running


@pytest.fixture(scope="module")
def mute() -> Iterator[Etcd]:
    """An etcd that is frozen."""
    with Etcd() as running:
        running.freeze()
        yield running


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        monkeypatch.setattr(subject, "log", structlog.get_logger("test"))
        yield lines


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield

    def left() -> list[str]:
        # Trio's own threads linger for ten seconds, on purpose.
        return [t.name for t in threading.enumerate() if t not in before and not t.name.startswith("Trio")]

    end = time.monotonic() + 1
    while left() and time.monotonic() < end:
        time.sleep(0.01)
    assert left() == []


# --- reading and watching


async def test_first_read_then_watch(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    await subject.write(its, key_prefix, b"one")
    async with watching(its) as (watcher, seen):
        assert seen.values == [b"one"]
        written = await subject.write(its, key_prefix, b"two")
        await seen.until(b"two")
        assert seen.revisions[-1] == written
        deleted = await subject.delete(its, key_prefix)
        await seen.until(None)
        assert seen.revisions[-1] == deleted
        now = watcher.snapshot()
        assert (now.connected, now.endpoint, now.last_error) == (True, etcd.endpoint, None)
        assert now.revision is not None
        assert now.revision >= deleted
        assert now.since <= trio.current_time()


async def test_a_missing_key_is_a_value_too(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with watching(its) as (_, seen):
        assert seen.values == [None]
        await subject.write(its, key_prefix, b"\xff\x00not text")
        await seen.until(b"\xff\x00not text")


async def test_a_key_beside_ours_is_not_ours(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with watching(its) as (_, seen):
        await subject.write(its, key_prefix + "x", b"other")
        await subject.write(its, key_prefix, b"ours")
        await seen.until(b"ours")
        assert seen.values == [None, b"ours"]


async def test_a_change_between_read_and_watch_is_not_missed(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    seen = Seen()

    def on_value(value: bytes | None, revision: int) -> None:
        if not seen.values:  # within the hand-over of the first read: the watch does not stand yet
            etcdctl(etcd, "put", key_prefix, "between")
        seen(value, revision)

    async with trio.open_nursery() as nursery:
        await nursery.start(KeyWatcher(its, on_value).run)
        await seen.until(b"between")
        nursery.cancel_scope.cancel()


async def test_a_lease_that_runs_out_is_a_change(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with watching(its) as (_, seen):
        await subject.write(its, key_prefix, b"for a while", ttl=0.5)
        await seen.until(b"for a while")
        held = await subject.read(its, key_prefix)
        assert held.expires_in is not None
        assert 0 <= held.expires_in <= 2  # etcd's minimum
        await seen.until(None, 6)


async def test_cancellation_is_quick_and_there_is_no_thread(etcd: Etcd, key_prefix: str) -> None:
    async with watching(settings(etcd.endpoint, key_prefix)) as (watcher, _):
        await until(lambda: watcher.snapshot().connected)
        assert not [t.name for t in threading.enumerate() if "etcd" in t.name]
        began = trio.current_time()
    assert trio.current_time() - began < 1


async def test_what_on_value_raises_ends_the_watcher(etcd: Etcd, key_prefix: str) -> None:
    def on_value(value: bytes | None, revision: int) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        await KeyWatcher(settings(etcd.endpoint, key_prefix), on_value).run()


# --- etcd in trouble


async def test_killed_changed_and_restarted(own: Etcd, logged: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    its = settings(own.endpoint)
    async with watching(its) as (watcher, seen):
        await until(lambda: watcher.snapshot().connected)
        own.kill()
        await until(lambda: not watcher.snapshot().connected)
        lost = watcher.snapshot()
        assert lost.last_error is not None
        assert lost.since <= trio.current_time()
        used = time.process_time()
        await trio.sleep(1.5)  # several attempts; also what the CPU is measured over
        assert time.process_time() - used < 0.2
        assert watcher.snapshot().since == lost.since
        await blocking(own.restart)
        etcdctl(own, "put", "/m", "on")
        await seen.until(b"on")
        await until(lambda: watcher.snapshot().connected)
    assert [(line["event"], line["log_level"]) for line in logged if line["log_level"] != "debug"] == [
        ("etcd connected", "info"),
        ("etcd lost; the last known state stands", "warning"),
        ("etcd connected", "info"),
    ]
    assert capfd.readouterr().err == ""


async def test_restarted_with_a_fresh_data_directory(own: Etcd) -> None:
    its = settings(own.endpoint)
    for number in range(5):  # a revision that the fresh store will not reach
        etcdctl(own, "put", "/m", f"{number}")
    async with watching(its) as (watcher, seen):
        own.kill()
        await blocking(lambda: own.restart(wipe=True))
        await seen.until(None)
        await subject.write(its, "/m", b"fresh")
        await seen.until(b"fresh")
        assert (watcher.snapshot().revision or 99) < 5


async def test_compacted_while_away(own: Etcd) -> None:
    its = settings(own.endpoint)
    async with watching(its) as (watcher, seen):
        own.freeze()
        own.kill()
        await until(lambda: not watcher.snapshot().connected)
        await blocking(own.restart)
        for number in range(3):
            etcdctl(own, "put", "/m", f"{number}")
        etcdctl(own, "compact", "4")
        await seen.until(b"2")


async def test_compacted_between_read_and_watch(own: Etcd) -> None:
    seen = Seen()

    def on_value(value: bytes | None, revision: int) -> None:
        if not seen.values:
            for number in range(3):
                etcdctl(own, "put", "/m", f"{number}")
            etcdctl(own, "compact", "4")
        seen(value, revision)

    async with trio.open_nursery() as nursery:
        watcher = KeyWatcher(settings(own.endpoint), on_value)
        await nursery.start(watcher.run)
        await seen.until(b"2")
        await until(lambda: watcher.snapshot().connected)
        assert "compacted" in (watcher.snapshot().last_error or "")
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_frozen_for_fifteen_seconds(own: Etcd, logged: list[Any]) -> None:
    its = settings(own.endpoint)
    async with watching(its) as (watcher, seen):
        await until(lambda: watcher.snapshot().connected)
        own.freeze()
        frozen = trio.current_time()
        await until(lambda: not watcher.snapshot().connected, 8)
        await trio.sleep_until(frozen + 15)  # the issue's own number
        own.thaw()
        etcdctl(own, "put", "/m", "on")
        await seen.until(b"on", 5)
        await until(lambda: watcher.snapshot().connected)
    assert [line["log_level"] for line in logged if line["log_level"] != "debug"] == ["info", "warning", "info"]


async def test_a_change_just_before_freezing_and_a_short_freeze(own: Etcd, logged: list[Any]) -> None:
    its = settings(own.endpoint)
    async with watching(its) as (watcher, seen):
        await until(lambda: watcher.snapshot().connected)
        own.freeze()
        await trio.sleep(0.5)
        own.thaw()
        etcdctl(own, "put", "/m", "on")
        await seen.until(b"on", 5)
    assert [line["log_level"] for line in logged] == ["info"]  # too short to be noticed


async def test_unreachable_at_start(logged: list[Any]) -> None:
    with Etcd() as late:
        its = settings(late.endpoint)
        late.kill()
        seen = Seen()
        watcher = KeyWatcher(its, seen)
        async with trio.open_nursery() as nursery:
            started = trio.Event()

            async def start() -> None:
                await nursery.start(watcher.run)
                started.set()

            nursery.start_soon(start)
            await until(lambda: watcher.snapshot().last_error is not None)
            assert late.endpoint in (watcher.snapshot().last_error or "")
            assert not started.is_set()
            assert not watcher.snapshot().connected
            await blocking(late.restart)
            with trio.fail_after(5):
                await started.wait()
            assert seen.values == [None]
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in logged if line["log_level"] == "warning"] == [
        "etcd out of reach; the key has not been read yet"
    ]


async def test_dead_and_mute_endpoints_do_not_matter(etcd: Etcd, mute: Etcd, key_prefix: str) -> None:
    its = settings(f"127.0.0.1:1,{mute.endpoint},nowhere.invalid:2379,{etcd.endpoint}", key_prefix)
    await subject.write(its, key_prefix, b"on")
    began = trio.current_time()
    async with watching(its) as (watcher, seen):
        assert seen.values == [b"on"]
        await until(lambda: watcher.snapshot().connected)
        assert watcher.snapshot().endpoint == etcd.endpoint
    assert trio.current_time() - began < 2


async def test_a_watch_that_has_gone_deaf_is_found_out(
    etcd: Etcd, key_prefix: str, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    watch = etcd_connection.Connection.watch

    def deaf(self: etcd_connection.Connection, names: list[str], revision: int) -> Any:
        """Watches another key: for ours it is alive and silent."""
        return watch(self, [name + "other" for name in names], revision)

    monkeypatch.setattr(etcd_connection.Connection, "watch", deaf)
    monkeypatch.setattr(subject, "_PROBE_EVERY", 0.2)
    its = settings(etcd.endpoint, key_prefix)
    async with watching(its) as (watcher, seen):
        await subject.write(its, key_prefix, b"on")
        await seen.until(b"on", 2)
        await until(lambda: "missed a change" in (watcher.snapshot().last_error or ""), 5)


# --- users, TLS


@pytest.fixture
def guarded() -> Iterator[Etcd]:
    """An etcd with users: root (password rootpass) and svc (password s3cr3t-word), who may use /m. Tokens last 1 s."""
    with Etcd("--auth-token-ttl=1") as running:
        for words in (
            "user add root:rootpass",
            "user grant-role root root",
            "role add switch",
            "role grant-permission switch readwrite /m",
            "user add svc:s3cr3t-word",
            "user grant-role svc switch",
            "auth enable",
        ):
            etcdctl(running, *words.split())
        yield running


async def test_user_and_password(guarded: Etcd, monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    good = settings(guarded.endpoint, etcd_username="svc", etcd_password="s3cr3t-word")
    await subject.write(good, "/m", b"on", ttl=60)
    held = await subject.read(good, "/m")
    assert held.value == b"on"
    assert held.expires_in is not None
    assert 55 < held.expires_in <= 60

    for wrong, said in (
        (settings(guarded.endpoint, etcd_username="svc", etcd_password="wr0ng-word"), "Check ETCD_USERNAME"),
        (settings(guarded.endpoint), "set ETCD_USERNAME"),
        (settings(guarded.endpoint, "/x", etcd_username="svc", etcd_password="s3cr3t-word"), "Grant the user"),
    ):
        with pytest.raises(EtcdError, match=said) as caught:
            await subject.read(wrong, wrong.maintenance_key)
        assert guarded.endpoint in str(caught.value)
        assert "-word" not in str(caught.value)

    monkeypatch.setattr(subject, "_PROBE_EVERY", 2.0)  # longer than a token lives
    async with watching(good) as (watcher, seen):
        await until(lambda: watcher.snapshot().connected)
        await trio.sleep(2.5)
        assert watcher.snapshot().last_error is None  # a fresh token, the same watch
        await subject.write(good, "/m", b"off")
        await seen.until(b"off")
        # The member forgets its tokens with a restart.
        await blocking(guarded.restart)
        await subject.write(good, "/m", b"on")
        await seen.until(b"on")
    assert "s3cr3t" not in repr(logged)
    assert "s3cr3t" not in repr(watcher.snapshot())


async def test_a_password_that_etcd_does_not_want(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix, etcd_username="svc", etcd_password="s3cr3t-word")
    with pytest.raises(EtcdError, match="unset ETCD_USERNAME"):
        await subject.read(its, key_prefix)


def certificate(name: str, issuer: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer[0].subject if issuer else subject_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def pem(folder: Path, name: str, pair: tuple[Any, Any]) -> None:
    """Write `name`.pem and `name`.key."""
    form = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(pair[0].public_bytes(form))
    (folder / f"{name}.key").write_bytes(
        pair[1].private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    authority, other = certificate("authority"), certificate("other authority")
    paths = {}
    for name, (cert, key) in {
        "ca": authority,
        "other": other,
        "server": certificate("etcd", authority),
        "client": certificate("svc", authority),
    }.items():
        pem(tmp_path, name, (cert, key))
        paths[name], paths[name + "_key"] = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
    return paths


async def test_tls(
    certificates: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    c = certificates
    flags = [f"--cert-file={c['server']}", f"--key-file={c['server_key']}"]
    async with Etcd(*flags, scheme="https") as etcd:
        good = settings(etcd.endpoint, etcd_ca_cert=c["ca"])
        async with watching(good) as (_, seen):
            await subject.write(good, "/m", b"on")
            await seen.until(b"on")
        later = settings(etcd.endpoint, etcd_ca_cert=shutil.copy(c["ca"], c["ca"] + ".gone"))
        os.remove(c["ca"] + ".gone")
        for wrong, said in (
            (settings(etcd.endpoint, etcd_ca_cert=c["other"]), "Check ETCD_CA_CERT"),
            (settings(etcd.endpoint), "if it wants TLS, set ETCD_CA_CERT"),
            (settings(f"https://{etcd.endpoint}"), "of none that the system trusts"),
            (later, "cannot read .*gone"),
        ):
            with pytest.raises(EtcdError, match=said):
                await subject.read(wrong, "/m")
        # https:// alone: whom the system trusts.
        monkeypatch.setenv("SSL_CERT_FILE", c["ca"])
        assert (await subject.read(settings(f"https://{etcd.endpoint}"), "/m")).value == b"on"
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
        folder = Path(c["ca"]).parent / "authorities"
        folder.mkdir()
        for number, name in enumerate(("other", "ca")):
            shutil.copy(c[name], folder / f"0123456{number}.0")
        monkeypatch.setenv("SSL_CERT_DIR", str(folder))
        assert (await subject.read(settings(f"https://{etcd.endpoint}"), "/m")).value == b"on"
    assert capfd.readouterr().err == ""


async def test_a_password_never_goes_out_in_clear_text_where_tls_is_asked_for() -> None:
    """Not even when the other side does not speak it."""
    heard = bytearray()

    async def listen(stream: trio.SocketStream) -> None:
        async for data in stream:
            heard.extend(data)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, listen, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        its = settings(f"https://127.0.0.1:{port}", etcd_username="svc", etcd_password="s3cr3t-word")
        with pytest.raises(EtcdError):
            await subject.read(its, "/m")
        nursery.cancel_scope.cancel()
    assert heard.startswith(b"\x16\x03")  # a TLS handshake
    assert b"s3cr3t" not in heard


@pytest.mark.parametrize(
    ("endpoints", "told"),
    [
        ("etcd:2379,127.0.0.1:1", ["etcd"]),
        ("10.0.0.1:2379", ["10.0.0.1"]),
        ("127.0.0.9:1,localhost:2,[::1]:3", []),
        ("https://etcd:2379", []),
    ],
)
def test_who_hears_the_password(endpoints: str, told: list[str]) -> None:
    assert password_in_the_open(settings(endpoints, etcd_username="svc", etcd_password="s3cr3t-word")) == told
    assert password_in_the_open(settings(endpoints)) == []


async def test_a_password_in_clear_text_is_told_at_the_start(logged: list[Any]) -> None:
    its = settings("nowhere.invalid:1", etcd_username="svc", etcd_password="s3cr3t-word")
    with trio.move_on_after(1):
        await KeyWatcher(its, lambda value, revision: None).run()
    assert "clear text" in logged[0]["event"]
    assert "s3cr3t" not in repr(logged)


async def test_tls_with_a_client_certificate(certificates: dict[str, str]) -> None:
    c = certificates
    flags = [f"--cert-file={c['server']}", f"--key-file={c['server_key']}"]
    async with Etcd(*flags, "--client-cert-auth", f"--trusted-ca-file={c['ca']}", scheme="https") as etcd:
        both = settings(etcd.endpoint, etcd_ca_cert=c["ca"], etcd_cert=c["client"], etcd_key=c["client_key"])
        await subject.write(both, "/m", b"on")
        assert (await subject.read(both, "/m")).value == b"on"
        with pytest.raises(EtcdError, match=re.escape(etcd.endpoint)):
            await subject.read(settings(etcd.endpoint, etcd_ca_cert=c["ca"]), "/m")


# --- one-shot calls


async def test_read_write_delete(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint)
    missing = await subject.read(its, key_prefix)
    assert (missing.value, missing.mod_revision, missing.expires_in) == (None, None, None)
    written = await subject.write(its, key_prefix, b"")
    held = await subject.read(its, key_prefix)
    assert (held.value, held.mod_revision, held.expires_in) == (b"", written, None)
    assert held.revision >= written
    await subject.write(its, key_prefix, b"x", ttl=100)
    await subject.write(its, key_prefix, b"x")  # stays
    assert (await subject.read(its, key_prefix)).expires_in is None
    assert await subject.delete(its, key_prefix) > written
    assert await subject.delete(its, key_prefix) > 0
    assert (await subject.read(its, key_prefix)).value is None
    with pytest.raises(ValueError, match="ttl"):
        await subject.write(its, key_prefix, b"x", ttl=0)


async def test_values_larger_than_any_window(etcd: Etcd, key_prefix: str) -> None:
    its, value = settings(etcd.endpoint, key_prefix), os.urandom(1_400_000)
    async with etcd_connection.connected(its, key_prefix, its.etcd_endpoints) as (connection, found):
        async with connection.watch([key_prefix], found.revision + 1) as watch:
            for _ in range(2):
                await connection.put(key_prefix, value)
            assert (await connection.find([key_prefix])).keys[key_prefix].value == value
            told: list[bytes | None] = []
            with trio.fail_after(5):
                while len(told) < 2:
                    news = await watch.receive()
                    assert not isinstance(news, etcd_connection.Trouble)
                    told += [change.value for change in news.changes]
            assert told == [value, value]
        with pytest.raises(etcd_connection.Trouble, match="larger than max"):
            await connection.put(key_prefix, value * 3)
        assert (await connection.find([key_prefix])).keys[key_prefix].value == value  # the connection goes on


async def test_nobody_there_is_told_with_every_endpoint() -> None:
    with pytest.raises(EtcdError) as caught, trio.fail_after(5.5):
        await subject.read(settings("127.0.0.1:1,127.0.0.1:2"), "/m")
    text = str(caught.value)
    assert "127.0.0.1:1: " in text
    assert "127.0.0.1:2: " in text
    assert "refused" in text
    assert "Check ETCD_ENDPOINTS" in text


async def test_a_mute_etcd_is_told_in_time(mute: Etcd) -> None:
    began = trio.current_time()
    with pytest.raises(EtcdError, match="no answer within 3 s"):
        await subject.write(settings(mute.endpoint), "/m", b"x")
    assert trio.current_time() - began < 5


async def test_cancelling_a_call_is_immediate(mute: Etcd) -> None:
    began = trio.current_time()
    with trio.move_on_after(0.3) as scope:
        await subject.read(settings(mute.endpoint), "/m")
    assert scope.cancelled_caught
    assert trio.current_time() - began < 0.8


@pytest.mark.slow
def test_importing_warns_of_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import svc.etcd.watcher"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_one_shot_begins_anew_when_its_endpoint_fails_in_the_middle(etcd: Etcd, key_prefix: str) -> None:
    settings = load({"ETCD_ENDPOINTS": f"{etcd.endpoint},{etcd.endpoint}", "MAINTENANCE_KEY": key_prefix + "key"})
    said: list[str] = []

    async def order(connection: etcd_connection.Connection, answer: Any) -> str:
        said.append("asked")
        if len(said) == 1:
            raise etcd_connection.Trouble("Socket closed", etcd_connection.CHECK_ENDPOINT)
        return "done"

    assert await etcd_connection.one_shot(settings, settings.maintenance_key, order) == "done"
    assert len(said) == 2

    async def forbidden(connection: etcd_connection.Connection, answer: Any) -> str:
        said.append("asked")
        raise etcd_connection.Trouble("permission denied", "Grant it.", denied=True)

    with pytest.raises(EtcdError, match=r"permission denied. Grant it"):
        await etcd_connection.one_shot(settings, settings.maintenance_key, forbidden)
    assert len(said) == 3  # a refusal is an answer


@pytest.mark.slow
async def test_reads_that_are_given_up_in_the_middle_do_etcd_no_harm(own: Etcd) -> None:
    """etcd before 3.5.5 ends itself over a transaction of reads whose client gives up (etcd-io/etcd#14110)."""
    settings = load({"ETCD_ENDPOINTS": own.endpoint, "MAINTENANCE_KEY": "/key"})
    async with etcd_connection.connected(settings, "/key", settings.etcd_endpoints) as (connection, _):
        for number in range(300):  # enough that a read takes some milliseconds
            await connection.put(f"/key/instances/{number}", b"x" * 2000)
        for number in range(300):
            with trio.move_on_after(number % 30 / 5_000):
                await connection.find(["/key", "/key/only/i"], ["/key/instances/"], serializable=number % 2 == 0)
        with trio.fail_after(10):
            found = await connection.find(["/key"], ["/key/"])
        assert len(found.keys) == 301
        assert found.revision >= 1
    assert own.running
