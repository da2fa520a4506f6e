"""python -m tests.mutation [FILE …]: mutate these files (all that decide, by default), run their in-memory tests on each mutant,
and tell what has survived. Exit code 1 when a survivor is not explained in `kept.txt`, or less than 95 % are killed.

It needs mutmut (`pip install mutmut==3.8.1`), and works in a copy of the sources; each file takes between a few seconds and some
minutes.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

MAINTENANCE = tuple(f"tests/maintenance/test_{name}.py" for name in ("fleet", "fence", "maintenance", "orders"))
FILES: dict[str, tuple[str, ...]] = {
    "svc/backoff.py": ("tests/consumer/test_retries.py", "tests/consumer/test_worker.py"),
    "svc/consumer/batches.py": ("tests/consumer/test_batches.py", "tests/consumer/test_batch_ends.py"),
    "svc/consumer/breaker_state.py": ("tests/consumer/test_breaker.py",),
    "svc/consumer/delivery_states.py": ("tests/consumer/test_delivery_states.py",),
    "svc/consumer/drain.py": ("tests/consumer/test_drain_report.py",),
    "svc/consumer/gathering.py": ("tests/consumer/test_gathering.py", "tests/consumer/test_batches.py"),
    "svc/consumer/group_line.py": ("tests/consumer/test_group_line.py",),
    "svc/consumer/ledger.py": (
        "tests/consumer/test_ledger.py",
        "tests/consumer/test_worker.py",
        "tests/consumer/test_drain_report.py",
    ),
    "svc/consumer/postponed.py": ("tests/consumer/test_postponed.py",),
    "svc/consumer/settlement_batches.py": ("tests/consumer/test_settlement_batches.py",),
    "svc/consumer/waiting_groups.py": ("tests/consumer/test_waiting_groups.py", "tests/consumer/test_fifo_poison.py"),
    "svc/maintenance/fence.py": MAINTENANCE,
    "svc/maintenance/fleet.py": MAINTENANCE,
    "svc/maintenance/orders.py": MAINTENANCE,
    "svc/maintenance/phases.py": MAINTENANCE,
    "svc/maintenance/registration.py": ("tests/maintenance/test_registration.py",),
    "svc/maintenance/switch_value.py": MAINTENANCE,
}
"""Each file, and the tests that have to notice."""

COPIED = ("svc", "tests", "pyproject.toml", "README.md")

ENOUGH = 0.95
"""The part of the mutants of each run that has to be killed."""

LIMIT = 1800.0
"""Seconds after which mutmut is ended at one file. The slowest takes some five minutes on two idle cores."""

TIMEOUT = "timeout_multiplier=5\ntimeout_constant=3\n"
"""Of mutmut: a mutant is ended after five times as long as its tests and 3 s take. Those that wait in vain for a day of virtual
time, in small steps, would take minutes."""

KILLED, SURVIVED, UNTESTED = {1, 3}, 0, 33
"""Exit codes of pytest on a mutant, as mutmut keeps them; all others (a time-out, a crash) are kills too."""


@dataclass(frozen=True)
class Mutant:
    file: str
    was: str
    is_now: str

    def __str__(self) -> str:
        return f"{self.file} :: {self.was} :: {self.is_now}"


def kept() -> dict[str, str]:
    """Mutant → why it may live."""
    found = {}
    for line in (Path(__file__).parent / "kept.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            mutant, _, reason = line.rpartition(" :: ")
            found[mutant] = reason
    return found


def mutate(file: str, tests: tuple[str, ...], place: Path, jobs: int) -> tuple[int, list[Mutant]]:
    """How many mutants there are, and those that live."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__", "peers"))
        else:
            shutil.copy(source, place / name)
    lists = {
        "also_copy": COPIED[1:],
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ("-pno:cacheprovider",),
    }
    told = "".join(f"{name}=\n" + "".join(f"    {one}\n" for one in values) for name, values in lists.items())
    config = f"[mutmut]\nsource_paths=svc\nonly_mutate={file}\nuse_setproctitle=false\n{TIMEOUT}{told}"
    (place / "setup.cfg").write_text(config, "utf-8")
    command = [sys.executable, "-m", "mutmut"]
    environ = os.environ | {"PYTHONPATH": ""}
    log = place / "log"
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            [*command, "run", "--max-children", str(jobs)],
            cwd=place,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as running,
    ):
        try:
            failed = running.wait(LIMIT)
        except BaseException as why:
            os.killpg(running.pid, signal.SIGKILL)  # with the mutants that it has started
            if not isinstance(why, subprocess.TimeoutExpired):
                raise
            failed = True
    meta = place / "mutants" / f"{file}.meta"
    if failed or not meta.exists():
        sys.exit(
            f"mutmut has failed on {file}, or took longer than {LIMIT:.0f} s:\n{log.read_text('utf-8', 'replace')[-4000:]}"
        )
    codes: dict[str, int | None] = json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
    alive = []
    for name, code in codes.items():
        if code in (SURVIVED, UNTESTED, None):
            shown = subprocess.run(
                [*command, "show", name], cwd=place, env=environ, capture_output=True, text=True, check=True
            )
            alive.append(_mutant(file, shown.stdout))
    return len(codes), alive


def _mutant(file: str, diff: str) -> Mutant:
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    was, is_now = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return Mutant(file, was, is_now)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(FILES)}")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    told = parser.parse_args()
    if unknown := [file for file in told.files if file not in FILES]:
        parser.error(f"not among the files that are mutated: {', '.join(unknown)}")
    explained, unexplained, every, dead = kept(), 0, 0, 0
    for file in told.files or FILES:
        with tempfile.TemporaryDirectory(prefix="svc-mutation-") as place:
            count, alive = mutate(file, FILES[file], Path(place), told.jobs)
        every, dead = every + count, dead + count - len(alive)
        print(f"{file}: {count - len(alive)} of {count} killed", flush=True)
        for mutant in alive:
            reason = explained.get(str(mutant))
            unexplained += reason is None
            print(f"  {'kept' if reason else 'ALIVE'}: {mutant}{f' ({reason})' if reason else ''}", flush=True)
    print(
        f"{dead} of {every} mutants are killed ({dead / max(every, 1):.1%}); {unexplained} live and are not explained"
    )
    return 1 if unexplained or dead < ENOUGH * every else 0


if __name__ == "__main__":
    sys.exit(main())
