"""etcd in trouble. The last known state stands: work goes on, and what was switched meanwhile takes effect afterwards."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import trio

from svc.devstack.stack import Etcd, etcd_binary
from svc.etcd import fleet as etcd_fleet
from svc.maintenance.fleet import Result, Standing, Wait
from svc.maintenance.orders import Order
from svc.settings import Settings, load
from tests.etcd.test_etcd import certificate, pem
from tests.etcd_cluster import EtcdCluster, Member
from tests.etcd_proxy import GrpcProxy
from tests.faults.rows import outage, scenario
from tests.faults.trial import Trial

LOST = "etcd lost; the last known state stands"
UNREAD = "etcd out of reach; the key has not been read yet"
CONNECTED = "etcd connected"

HOLD = 4.0

WORKS_ON = "work goes on; `/health` 200 with `etcd.connected` false"


def alone(folder: Path, *flags: str) -> contextlib.AbstractContextManager[Sequence[Etcd]]:
    @contextlib.contextmanager
    def started() -> Iterator[Sequence[Etcd]]:
        with Etcd(*flags) as one:
            yield [one]

    return started()


@contextlib.contextmanager
def three(folder: Path) -> Iterator[Sequence[Etcd]]:
    with EtcdCluster(3) as cluster:
        yield cluster.members


async def works_on(t: Trial, hold: float = 0) -> None:
    """Messages are processed as before, /health is 200 and tells that etcd is gone."""
    end = trio.current_time() + hold
    body = await t.healthy(lambda body: not body["etcd"]["connected"], within=20)
    assert body["status"] == "healthy", body
    await t.processes()
    await trio.sleep_until(end)


async def takes_effect(t: Trial) -> None:
    """The switch that was set during the outage."""
    await t.healthy(lambda body: body["status"] in ("draining", "maintenance"))


async def switch_takes_effect(t: Trial) -> None:
    """A switch that is set now."""
    await t.switch_when_possible("on")
    await takes_effect(t)


async def back_to_work(t: Trial) -> None:
    """The maintenance that was part of the trial is over."""
    await t.switch_when_possible("off")
    await t.processes()


etcd_outage = partial(outage, etcds=True, named=LOST, over=CONNECTED, afterwards=back_to_work)
"""What is lost is etcd; the maintenance that shows its return ends the trial."""


def ctl(member: Etcd, *words: str) -> str:
    command = [etcd_binary("etcdctl"), f"--endpoints={member.endpoint}", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def etcdctl(member: Etcd, *words: str) -> str:
    return await trio.to_thread.run_sync(partial(ctl, member, *words))


@etcd_outage(
    "etcd-killed",
    "etcd is killed (SIGKILL), comes back, and maintenance is switched on",
    WORKS_ON,
    etcd=alone,
    by_default=True,
    recovers=switch_takes_effect,
)
async def _(t: Trial) -> None:
    (etcd,) = t.members
    await trio.to_thread.run_sync(etcd.kill)
    await works_on(t, HOLD)
    await trio.to_thread.run_sync(etcd.restart)


@etcd_outage(
    "etcd-frozen",
    "etcd is frozen (SIGSTOP) and goes on",
    f"{WORKS_ON}, within 8 s",
    etcd=alone,
    recovers=switch_takes_effect,
)
async def _(t: Trial) -> None:
    (etcd,) = t.members
    etcd.freeze()
    try:
        await works_on(t)
    finally:
        etcd.thaw()


@etcd_outage(
    "etcd-partition",
    "etcd is cut off: connections stand and carry nothing; maintenance is switched on meanwhile",
    f"{WORKS_ON}, within 8 s; the maintenance begins after the return",
    recovers=takes_effect,
)
async def _(t: Trial) -> None:
    t.etcd.hang()
    await works_on(t)
    await t.switch("on")


@etcd_outage("etcd-reset", "every connection to etcd is reset; switched on meanwhile", WORKS_ON, recovers=takes_effect)
async def _(t: Trial) -> None:
    t.etcd.reset()
    await works_on(t, HOLD)
    await t.switch("on")


@etcd_outage(
    "etcd-half-open",
    "etcd's side of the connection has gone without a word",
    f"{WORKS_ON}, within 8 s",
    recovers=takes_effect,
)
async def _(t: Trial) -> None:
    t.etcd.half_open()
    await t.switch("on")


@etcd_outage(
    "etcd-slow", "etcd answers, but everything takes 2 s more each way", WORKS_ON, recovers=switch_takes_effect
)
async def _(t: Trial) -> None:
    t.etcd.slow(2)
    await works_on(t, HOLD)


@scenario(
    "etcd-absent-at-start",
    "etcd is not there when the service starts",
    "`/health` 503 `starting`; nothing is received; begins by itself when etcd is there",
)
async def _(t: Trial) -> None:
    t.etcd.refuse()
    await t.start(load=False)
    body = await t.send()
    async with t.outage(lines=t.etcds, named=UNREAD, over=CONNECTED, from_the_start=True):
        await trio.sleep(HOLD)
        status, health = await t.health()
        assert (status, health["status"]) == (503, "starting")
        t.record.look()
        assert not t.record.succeeded[body]
        assert not t.sqs.requests or "ReceiveMessage" not in {action for _, action in t.sqs.requests}
    t.load()


def leader_of(t: Trial) -> Member:
    for member in t.members:
        assert isinstance(member, Member)
        if member.running and member.is_leader():
            return member
    raise LookupError("no leader")


async def watched_member_leads(t: Trial) -> Member:
    """Make the member that the service watches the leader; returns it."""
    _, health = await t.health()
    number = [line.endpoint for line in t.etcds].index(health["etcd"]["endpoint"])
    watched = t.members[number]
    assert isinstance(watched, Member)
    leader = await trio.to_thread.run_sync(leader_of, t)
    if leader is not watched:
        listed = (await etcdctl(leader, "member", "list")).splitlines()
        (id_,) = [line.split(",")[0] for line in listed if f", {watched.member}, " in line]
        await etcdctl(leader, "move-leader", id_)
    return watched


@scenario(
    "etcd-leader-killed",
    "3-node etcd: the leader, which the service watches, is killed and stays away",
    "nothing; `/health` tells another endpoint within seconds (measured from the kill)",
    etcd=three,
)
async def _(t: Trial) -> None:
    await t.start()
    leader = await watched_member_leads(t)
    async with t.outage(lines=t.etcds, named=LOST, over=CONNECTED, recovers=lambda: switch_takes_effect(t)):
        await trio.to_thread.run_sync(leader.kill)
    await back_to_work(t)


@scenario(
    "etcd-no-quorum",
    "3-node etcd: two members are killed; the one that is left has no leader",
    WORKS_ON,
    etcd=three,
)
async def _(t: Trial) -> None:
    await t.start()
    watched = await watched_member_leads(t)
    others = [member for member in t.members if member is not watched]
    async with t.outage(lines=t.etcds, named=LOST, over=CONNECTED, recovers=lambda: switch_takes_effect(t)):
        for member in others:
            await trio.to_thread.run_sync(member.kill)
        await works_on(t, HOLD)
        async with trio.open_nursery() as nursery:
            for member in others:
                nursery.start_soon(trio.to_thread.run_sync, member.restart)
    await back_to_work(t)


@scenario(
    "etcd-endpoints-die",
    "3-node etcd: the endpoints become unreachable one by one, until none is left; one comes back",
    "`/health` tells another endpoint each time; " + WORKS_ON + " when none is left",
    etcd=three,
)
async def _(t: Trial) -> None:
    await t.start()
    async with t.outage(lines=t.etcds[:1], named=LOST, over=CONNECTED, recovers=lambda: takes_effect(t)):
        for line in reversed(t.etcds[1:]):
            line.refuse()
            await t.healthy(
                lambda body, gone=line.endpoint: body["etcd"]["connected"] and body["etcd"]["endpoint"] != gone
            )
            await t.processes()
        t.etcds[0].refuse()
        await works_on(t)
        await t.switch("on")
    await back_to_work(t)


USERS = (
    "user add root:rootpass",
    "user grant-role root root",
    "role add switch",
    "role grant-permission switch readwrite /faults/ --prefix=true",
    "user add svc:s3cr3t-word",
    "user grant-role svc switch",
    "auth enable",
)
SIGN_IN = {"ETCD_USERNAME": "svc", "ETCD_PASSWORD": "s3cr3t-word"}
ROOT = "--user=root:rootpass"


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Sequence[Etcd]]:
    """With users; a token lasts for 2 s, so that none lives until the next use."""
    with Etcd("--auth-token-ttl=2") as one:
        for words in USERS:
            ctl(one, *words.split())
        yield [one]


@scenario(
    "etcd-token-expired",
    "etcd's auth token expires (every 2 s), and etcd forgets all of them (restart)",
    "nothing while they expire: it signs in again; `etcd.connected` false for the restart",
    etcd=guarded,
    **SIGN_IN,
)
async def _(t: Trial) -> None:
    (etcd,) = t.members
    await t.start()
    before = len(t.service.logs)
    await trio.sleep(8)  # longer than a token lives and than the service is silent
    assert not [line for line in t.service.logs[before:] if line["event"] == LOST]
    async with t.outage(lines=t.etcds, named=LOST, over=CONNECTED, recovers=lambda: switch_takes_effect(t)):
        await trio.to_thread.run_sync(etcd.restart)
    await back_to_work(t)


@etcd_outage(
    "etcd-permission-revoked",
    "the service's etcd user loses its permission, and gets it back",
    WORKS_ON + ", “Grant the user a role …” in the log",
    etcd=guarded,
    **SIGN_IN,
    recovers=switch_takes_effect,
)
async def _(t: Trial) -> None:
    (etcd,) = t.members
    await etcdctl(etcd, ROOT, "user", "revoke-role", "svc", "switch")
    await works_on(t, HOLD)
    await etcdctl(etcd, ROOT, "user", "grant-role", "svc", "switch")


@contextlib.contextmanager
def with_tls(folder: Path) -> Iterator[Sequence[Etcd]]:
    authority, other = certificate("authority"), certificate("another authority")
    for name, pair in {"ca": authority, "other": other, "server": certificate("etcd", authority)}.items():
        pem(folder, name, pair)
    flags = [f"--cert-file={folder / 'server.pem'}", f"--key-file={folder / 'server.key'}"]
    with Etcd(*flags, scheme="https") as one:
        yield [one]


@scenario(
    "etcd-wrong-ca",
    "TLS: the service trusts another authority than etcd's, until the file is replaced",
    "`/health` 503 `starting`, “Check ETCD_CA_CERT”; begins by itself when the file is right",
    etcd=with_tls,
)
async def _(t: Trial) -> None:
    folder = t.stand.record.parent
    trusted = folder / "trusted.pem"
    shutil.copy(folder / "other.pem", trusted)
    t.environ["ETCD_CA_CERT"] = str(trusted)
    await t.start(load=False)
    async with t.outage(lines=t.etcds, named=UNREAD, over=CONNECTED, from_the_start=True):
        body = await t.healthy(lambda body: "ETCD_CA_CERT" in str(body["etcd"]["error"]))
        assert body["status"] == "starting"
        await trio.sleep(HOLD)
        shutil.copy(folder / "ca.pem", trusted)
    t.load()


@etcd_outage(
    "etcd-compacted",
    "etcd's history is compacted beyond what the service has seen, while it is cut off",
    WORKS_ON,
    etcd=alone,
    recovers=takes_effect,
)
async def _(t: Trial) -> None:
    (etcd,) = t.members
    t.etcd.reset()
    await works_on(t)
    for value in ("off", "no", "on"):
        await t.switch(value)
    revision = (await etcdctl(etcd, "get", "x", "-w", "json")).partition('"revision":')[2].partition(",")[0]
    await etcdctl(etcd, "compact", revision)


@scenario(
    "etcd-wiped",
    "etcd comes back with no data while maintenance is on: the key is gone",
    "`etcd.connected` false; then the missing key counts: maintenance ends",
    etcd=alone,
)
async def _(t: Trial) -> None:
    (etcd,) = t.members
    await t.start()
    await t.switch("on")
    await t.healthy(lambda body: body["status"] == "maintenance")

    async def resumes() -> None:
        await t.processes()

    async with t.outage(lines=t.etcds, named=LOST, over=CONNECTED, recovers=resumes):
        await trio.to_thread.run_sync(partial(etcd.restart, wipe=True))


def odd_value(name: str, fault: str, value: bytes) -> None:
    @scenario(name, fault, "work goes on; `/health` 200, `etcd.ignored_value` says what is held")
    async def run(t: Trial) -> None:
        await t.start()
        async with t.outage(
            lines=t.etcds,
            named="the maintenance key's value is ignored, the state stands",
            over="the maintenance key's value is usable again",
            recovers=lambda: switch_takes_effect(t),
        ):
            await t.switch(value)
            body = await t.healthy(lambda body: body["etcd"]["ignored_value"])
            assert body["status"] == "healthy"
            assert len(body["etcd"]["ignored_value"]) < 500
            await t.processes()
        await back_to_work(t)
        assert max(len(line) for line in t.service.output) < 5000  # nor does the log hold it


odd_value("etcd-huge-value", "the key holds 1 MiB of text", b"x" * 1_048_576)
odd_value("etcd-binary-value", "the key holds binary data", bytes(range(256)))


def fleet_of(t: Trial) -> Settings:
    return load(t.stand.environ)


async def listed(t: Trial) -> None:
    with trio.fail_after(10):
        while not (await etcd_fleet.look(fleet_of(t))).entries:
            await trio.sleep(0.05)


@outage(
    "etcd-registration-deleted",
    "somebody deletes the registrations and the memberships of the fleet (`etcdctl del --prefix`)",
    "nothing; it is listed again within a third of `INSTANCE_TTL`, and one warning says so",
    named="the registration was deleted or changed by somebody else: writing it again",
    over="",
    etcds=True,
    recovers=listed,
    etcd=alone,
    INSTANCE_TTL="6",
)
async def _(t: Trial) -> None:
    (etcd,) = t.members
    await listed(t)
    for what in ("instances", "members"):
        await etcdctl(etcd, "del", "--prefix", f"{t.stand.environ['MAINTENANCE_KEY']}/{what}/")


@contextlib.contextmanager
def behind_a_proxy(folder: Path) -> Iterator[Sequence[Etcd]]:
    with Etcd() as one, GrpcProxy(one) as proxy:
        yield [proxy]  # type: ignore[list-item]  # what is asked of it here, an endpoint, it has


@scenario(
    "etcd-grpc-proxy",
    "between the service and etcd stands `etcd grpc-proxy`",
    "nothing: registered without a gap, no warning, the switch takes effect",
    etcd=behind_a_proxy,
)
async def _(t: Trial) -> None:
    await t.start()
    await listed(t)
    end = trio.current_time() + 12  # longer than `INSTANCE_TTL`
    while trio.current_time() < end:
        assert (await etcd_fleet.look(fleet_of(t))).vanished == ()
        await trio.sleep(0.5)
    await switch_takes_effect(t)
    await back_to_work(t)
    warned = [line for line in t.service.logs if line["level"] == "warning" and "etcd" in line["logger"]]
    assert warned == []


@scenario(
    "etcd-blocked-loop",
    "a processor blocks the event loop for longer than `INSTANCE_TTL` (8 s, 5 s), and somebody waits for the fleet to drain",
    "the instance is shown as `blocked` with 1 in flight; the wait ends when it has drained, and not before",
    MESSAGE_PROCESSOR="tests.recording:blocking",
    INSTANCE_TTL="5",
)
async def _(t: Trial) -> None:
    await t.start(load=False)
    its = fleet_of(t)
    body = await t.send(seconds=8)
    await t.service.logged_like("the event loop is blocked")
    wait, seen = Wait(await etcd_fleet.ask(its, Order(True))), set[tuple[str, int | None]]()

    def tell(standing: Standing) -> None:
        seen.update((one.phase, one.in_flight) for one in standing.live)

    with trio.fail_after(40):
        standing = await etcd_fleet.follow(its, wait, tell)
    t.record.look()
    assert (standing.result, standing.died) == (Result.DONE, ())
    assert ("blocked", 1) in seen
    assert t.record.succeeded[body] == 1
    await etcd_fleet.ask(its, Order(False))
    await t.healthy(lambda body: body["status"] == "healthy")
