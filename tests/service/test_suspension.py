"""A process whose machine sleeps, with the clocks of a real one. (What is lost by that: `tests/consumer/test_suspension.py`.)"""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "faults" / "clock_jump.c"

PROGRAM = """
import struct, sys, time, trio
from svc.maintenance.suspension import Suspensions
from svc.service import _clock

def jump(seconds):
    with open(sys.argv[1], "r+b") as file:
        file.write(struct.pack("l", seconds))

async def main():
    told = []
    trio.lowlevel.add_instrument(Suspensions(_clock, told.append))
    await trio.sleep(0.1)
    time.sleep(0.5)  # stands still: that is no sleep of the machine
    await trio.sleep(0.1)
    assert told == [], told
    jump(600)
    await trio.lowlevel.checkpoint()  # known before any other task takes a step
    await trio.lowlevel.checkpoint()
    assert [round(seconds) for seconds in told] == [600], told
    await trio.sleep(0.1)
    jump(1200)
    await trio.sleep(0.1)
    assert [round(seconds) for seconds in told] == [600, 600], told

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="CLOCK_BOOTTIME is Linux's")
def test_a_process_notices_at_once_that_the_machine_has_slept(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("a C compiler is needed to move the clock of one process (clock_jump.c)")
    library, jump = tmp_path / "clock_jump.so", tmp_path / "jump"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    jump.write_bytes(struct.pack("l", 0))
    environ = {**os.environ, "LD_PRELOAD": str(library), "BOOT_JUMP": str(jump)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(jump)], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
