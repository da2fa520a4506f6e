"""`svc maintenance … --wait`: exit codes, and what is said in a pipe, as JSON and on a terminal; real processes, a real etcd."""

import json
import os
import pty
import re
from dataclasses import replace
from functools import partial

import trio

from svc.devstack.stack import Etcd
from svc.etcd.watcher import KeyWatcher
from tests import preloaded
from tests.cli.test_cli import side_by_side, surroundings, svc
from tests.etcd.test_etcd_fleet import Instance, ctl, settings, until

__all__ = ["surroundings"]  # a fixture


class Obedient(Instance):
    """Says what it is to say about each request as soon as it stands in etcd."""

    phase = "drained"

    async def obey(self) -> None:
        def on_value(value: bytes | None, revision: int) -> None:
            off = value in (None, b"false")
            self.say("running" if off else self.phase, revision)
            self.said = replace(self.said, quiet=b"quiet" in (value or b""))

        await KeyWatcher(self.settings, on_value).run()


async def test_exit_codes_in_a_pipe(surroundings: dict[str, str], etcd: Etcd, key_prefix: str) -> None:
    async def wait_for(phase: str, code: int, said: str, option: str = "--wait") -> None:
        its = settings(
            etcd.endpoint, f"{key_prefix}{phase}{option[7:]}", INSTANCE_TTL="60"
        )  # a busy machine is not what is tried
        environ = {**surroundings, "ETCD_ENDPOINTS": etcd.endpoint, "MAINTENANCE_KEY": its.maintenance_key}
        instance = Obedient(its, "orders-1")
        instance.phase = phase
        async with instance.running(), trio.open_nursery() as nursery:
            nursery.start_soon(instance.obey)
            timeout = "1s" if code == 4 else "1m"
            ended = await svc("maintenance", "on", option, "--timeout", timeout, environ=environ)
            assert (ended.code, ended.err) == (code, ""), ended.out
            assert ended.out.startswith(f"maintenance is on (key {its.maintenance_key}, revision ")
            assert re.search(
                rf"^ +\d+\.\d s  orders-1: (new, )?{'landing' if '=' in option else phase}", ended.out, re.MULTILINE
            )
            assert said in ended.out.splitlines()[-1]
            if code == 0:
                ended = await svc("maintenance", "off", "--wait", "--json", environ=environ)
                events = [json.loads(line) for line in ended.out.splitlines()]
                assert ended.code == 0
                assert [events[0]["event"], events[-1]["event"]] == ["switched", "end"]
                assert (events[-1]["result"], events[-1]["code"], events[-1]["waiting"]) == ("done", 0, [])
                assert events[-1]["instances"][0]["phase"] == "running"
            nursery.cancel_scope.cancel()

    await side_by_side(
        partial(wait_for, "drained", 0, "1 instance is drained after "),
        partial(wait_for, "expired", 3, "out of time before everything was finished: orders-1"),
        partial(wait_for, "draining", 0, "1 instance is quiet after ", "--wait=quiet"),
        partial(wait_for, "draining", 4, "still waiting for orders-1"),
    )


async def test_the_table_on_a_terminal(surroundings: dict[str, str], etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix + "key", INSTANCE_TTL="60")
    environ = {**surroundings, "ETCD_ENDPOINTS": etcd.endpoint, "MAINTENANCE_KEY": its.maintenance_key, "TERM": "xterm"}
    ours, theirs = pty.openpty()
    shown = b""

    def read() -> None:
        nonlocal shown
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other side is closed
                return
            if not part:
                return
            shown += part

    async with Instance(its, "orders-1").running() as instance:
        instance.say("draining", in_flight=3)
        process = preloaded.popen(["maintenance", "on", "--wait"], env=environ, stdout=theirs, stderr=theirs)
        os.close(theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, read)
            # A table may be drawn before the instance's first answer has reached etcd: what it is to show is waited for.
            await until(lambda: re.search(rb"orders-1 +draining +3 .*not yet", shown) is not None, 30)
            revision = re.search(rb"revision (\d+)", shown)
            assert revision is not None
            instance.say("drained", int(revision[1]))
            with trio.fail_after(30):
                await preloaded.exited(process)
        os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    assert re.search(r"orders-1 +draining +3 .*not yet", text)
    assert re.search(r"orders-1 +drained +0", text)
    assert "\x1b[" in text
    assert text.rstrip().splitlines()[-1].startswith("1 instance is drained after ")


async def test_who_is_not_heard_of_and_nobody_at_all_have_codes_of_their_own(
    surroundings: dict[str, str], etcd: Etcd, key_prefix: str
) -> None:
    environ = {**surroundings, "ETCD_ENDPOINTS": etcd.endpoint}
    empty, empty_too = [{**environ, "MAINTENANCE_KEY": f"{key_prefix}{name}"} for name in ("empty", "empty too")]
    its = settings(etcd.endpoint, f"{key_prefix}lapsed")
    lapsed = {**environ, "MAINTENANCE_KEY": its.maintenance_key}
    instance = Instance(its, "orders-1")
    async with instance.running():
        pass
    await ctl(etcd, "lease", "revoke", f"{instance.registrar._lease:x}")  # as time does

    async def ends(code: int, said: str, environ: dict[str, str], *words: str) -> None:
        ended = await svc("maintenance", *words, environ=environ)
        assert ended.code == code, ended.out
        assert said in ended.out + ended.err

    await side_by_side(
        partial(ends, 6, "there was nobody to wait for (--allow-none)", empty, "on", "--wait"),
        partial(ends, 0, "there was nobody to wait for", empty_too, "on", "--wait", "--allow-none"),
        partial(ends, 5, "vanished, drained or not: orders-1.", lapsed, "on", "--wait"),
        partial(ends, 0, "orders-1  vanished", lapsed, "status"),
        partial(ends, 1, "no instance 'orders-2' has vanished; there are orders-1", lapsed, "forget", "orders-2"),
    )
    await ends(0, "vanished, drained or not: orders-1.", lapsed, "on", "--wait", "--allow-vanished")
    await ends(0, "orders-1 is forgotten", lapsed, "forget", "orders-1")
    await ends(0, "instances: none is registered", lapsed, "status")
