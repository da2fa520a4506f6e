"""The command line of the bench; see `tests/bench/__init__.py`."""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from svc.devstack.stack import Etcd
from tests.sqs.test_tls import certificate

from . import picture, report
from .consumers import CONSUMERS, ROOT, SVC, CannotRun, Consumer, Place
from .growth import SIZES, growth
from .latency import latency
from .overhead import PROCESSORS, VARIANTS, Variant, overhead
from .processes import Process, prefer
from .quiet import WINDOW, quiet
from .reaction import reaction
from .rest import rest
from .saturation import saturate
from .stubbed import Stub

ROWS = ("saturation", "tls", "rest", "quiet", "latency", "reaction", "growth", "overhead", "processors")
BY_DEFAULT = ROWS[:-2]
PAGE, PICTURE = "docs/performance.md", "docs/pictures/growth.svg"
LATEST = 12 * 60.0
"""Seconds after which no further row is begun, so that the whole stays below a quarter of an hour whatever happens."""

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def main() -> int:
    options = _options()
    if options.replay:
        result = json.loads(Path(options.replay).read_text())
    else:
        result = run(options)
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False))
        print(f"wrote {path}\n", file=sys.stderr)
    print(report.markdown(result))
    if options.write:
        into_page(result)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="What svc costs, beside a bare loop and its peers, on a local SQS stub. Some ten minutes on two cores.",
    )
    parser.add_argument(
        "--rows",
        default=",".join(BY_DEFAULT),
        help=f"which rows of {','.join(ROWS)}, with commas (default: all but the last two)",
    )
    parser.add_argument(
        "--consumers", default="", help=f"which consumers, with commas (default: {','.join(c.key for c in CONSUMERS)})"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each consumer at saturation (default 3)")
    parser.add_argument("--backlog", type=int, default=30_000, help="messages at saturation (default 30000)")
    parser.add_argument("--seconds", type=float, default=8.0, help="at most for one run at saturation (default 8)")
    parser.add_argument("--toggles", type=int, default=50, help="of maintenance, for the reaction (default 50)")
    parser.add_argument("--quick", action="store_true", help="one run of everything, short: to see whether it works")
    parser.add_argument(
        "--first", action="store_true", help="measured processes go before all others: for a machine in use; needs root"
    )
    parser.add_argument("--json", default=str(ROOT / ".bench" / "result.json"), help="where the result goes")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE} and {PICTURE}")
    parser.add_argument("--replay", metavar="JSON", help="measure nothing: the table of this result")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.seconds, options.toggles = 1, 3.0, 10
    unknown = set(options.rows.split(",")) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    rows = options.rows.split(",")
    chosen = [one for one in CONSUMERS if not options.consumers or one.key in options.consumers.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    core, other = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
    began = time.monotonic()
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(["python -m tests.bench", *sys.argv[1:]]),
        "repeats": options.repeats,
        "machine": _machine(len(cores)),
        "consumers": {},
    }
    able = _prepared(chosen, result)
    if core is not None:
        os.sched_setaffinity(0, {other})  # the bench itself looks on from the stub's core
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        authority, _ = certificate(Path(folder), "127.0.0.1")  # signs itself: it is its own authority
        stub = held.enter_context(Stub(other, (authority, authority.with_suffix(".key"))))
        etcd = held.enter_context(Etcd())
        if options.first:
            Process.first = True
            held.callback(prefer, os.getpid(), 0)  # its session is that of the shell, which goes on
            for pid in (os.getpid(), stub.pid, etcd.pid):
                prefer(pid)
        bench = _Bench(result, able, stub, etcd.endpoint, core, Path(folder), options)
        for row in ROWS:
            if row in rows and time.monotonic() - began > LATEST:
                print(f"{row}: not begun, {LATEST / 60:.0f} minutes are over", file=sys.stderr)
            elif row in rows:
                print(f"{time.monotonic() - began:4.0f} s  {row}", file=sys.stderr, flush=True)
                getattr(bench, row)()
        if errors := stub.errors():
            print(f"the stub did not understand:\n{errors}", file=sys.stderr)
    result["seconds"] = round(time.monotonic() - began)
    result["goals"] = report.goals_of(result)
    return result


def _prepared(chosen: list[Consumer], result: dict[str, Any]) -> list[Consumer]:
    able = []
    for one in chosen:
        found: dict[str, Any] = {"title": one.title, "how": one.how, "versions": ""}
        result["consumers"][one.key] = found
        try:
            one.prepare()
            found["versions"] = one.versions()
            able.append(one)
        except CannotRun as error:
            found["error"] = str(error)
            print(f"{one.key}: {error}", file=sys.stderr)
    return able


class _Bench:
    """The rows, each writing its part of the result."""

    def __init__(
        self, result: dict[str, Any], able: list[Consumer], stub: Stub, etcd: str, core: int | None, folder: Path,
        options: argparse.Namespace,
    ) -> None:  # fmt: skip
        self._result = result
        self._able = able
        self._stub = stub
        self._etcd = etcd
        self._core = core
        self._folder = folder
        self._options = options

    def saturation(self) -> None:
        for repeat in range(self._options.repeats):
            for one in self._able if repeat % 2 == 0 else list(reversed(self._able)):
                found = self._result["consumers"][one.key]
                if "error" in found:
                    continue
                place = Place(self._stub.url, f"{one.key}-full-{repeat}", self._etcd)
                try:
                    done = saturate(
                        one,
                        self._stub,
                        place,
                        backlog=self._options.backlog,
                        seconds=self._options.seconds,
                        core=self._core,
                    )
                except CannotRun as error:
                    found["error"] = str(error)
                    print(f"{one.key}: {error}", file=sys.stderr)
                    continue
                found.setdefault("saturation", []).append(
                    asdict(done) | {
                        "per_second": done.per_second, "cpu_per_message": done.cpu_per_message,
                        "core_share": done.cpu / done.seconds,
                        "requests": done.requests_per_message, "calls": done.requests, "stub_share": done.stub_share,
                    }
                )  # fmt: skip
                print(
                    f"        {one.key:12} {done.per_second:7.0f}/s {done.cpu_per_message * 1e6:6.0f} µs/message "
                    f"{done.requests_per_message:6.3f} requests/message; core busy {done.cpu / done.seconds:.0%}, stub's "
                    f"{done.stub_share:.0%}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def tls(self) -> None:
        """svc over plain connections and over TLS, taking turns."""
        if SVC not in self._able:
            return
        found: dict[str, list[float]] = {"plain": [], "tls": []}
        for repeat in range(self._options.repeats):
            for kind, url in (("plain", self._stub.url), ("tls", self._stub.tls_url)):
                place = Place(url, f"svc-{kind}-{repeat}", self._etcd, {"AWS_CA_BUNDLE": str(self._stub.authority)})
                done = saturate(
                    SVC,
                    self._stub,
                    place,
                    backlog=self._options.backlog,
                    seconds=self._options.seconds,
                    core=self._core,
                )
                found[kind].append(done.cpu_per_message)
                print(f"        {kind:6} {done.cpu_per_message * 1e6:6.0f} µs/message", file=sys.stderr, flush=True)
        self._result["tls"] = found

    def rest(self) -> None:
        if SVC in self._able:
            place = Place(self._stub.url, "svc-rest", self._etcd)
            window = 10.0 if self._options.quick else 30.0
            self._result["rest"] = rest(SVC, self._stub, place, window=window, core=self._core)

    def quiet(self) -> None:
        window = 20.0 if self._options.quick else WINDOW
        for key, found in quiet(self._able, self._stub, self._etcd, core=self._core, window=window).items():
            self._result["consumers"][key]["quiet"] = found

    def latency(self) -> None:
        for one in self._able:
            found = self._result["consumers"][one.key]
            runs = found.get("saturation")
            rate = statistics.median(run["per_second"] for run in runs) if runs else 500.0
            place = Place(self._stub.url, f"{one.key}-latency", self._etcd)
            try:
                found["latency"] = latency(one, self._stub, place, rate=rate, folder=self._folder, core=self._core)
            except CannotRun as error:
                print(f"{one.key}: latency: {error}", file=sys.stderr)

    def reaction(self) -> None:
        place = Place(self._stub.url, "svc-reaction", self._etcd)
        if SVC in self._able:
            self._result["reaction"] = reaction(SVC, self._stub, place, toggles=self._options.toggles, core=self._core)

    def overhead(self) -> None:
        self._result["overhead"] = self._variants(VARIANTS)

    def processors(self) -> None:
        self._result["processors"] = self._variants(PROCESSORS)

    def _variants(self, variants: Sequence[Variant]) -> list[dict[str, object]]:
        return overhead(
            variants, self._stub, self._etcd, repeats=self._options.repeats, backlog=self._options.backlog,
            seconds=self._options.seconds, core=self._core,
        )  # fmt: skip

    def growth(self) -> None:
        if SVC in self._able:
            self._result["growth"] = growth(
                SVC, self._stub, self._etcd, sizes=SIZES, backlog=self._options.backlog,
                seconds=min(self._options.seconds, 5.0), core=self._core,
            )  # fmt: skip


def _machine(cores: int) -> dict[str, Any]:
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "cores": cores,
        "system": f"Linux {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }


def into_page(result: dict[str, Any]) -> None:
    """Put the table between the two marks in the page, and the picture beside it."""
    page = ROOT / PAGE
    text = page.read_text()
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{PAGE} does not hold {BEGIN} and {END}")
    if result.get("growth"):
        (ROOT / PICTURE).parent.mkdir(exist_ok=True)
        (ROOT / PICTURE).write_text(picture.growth(result["growth"]))
    table = report.markdown(result, PICTURE.removeprefix("docs/") if result.get("growth") else None)
    page.write_text(f"{before}{BEGIN}\n{table}{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
