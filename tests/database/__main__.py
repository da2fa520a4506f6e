"""python -m tests.database --rounds 20 [--instances 3]: maintenance on and off, and the fleet's connections at the server."""

import argparse
import sys
import tempfile
from pathlib import Path

import trio

from svc.devstack.child import start_all
from svc.devstack.postgres import Postgres
from svc.devstack.stack import Etcd, Moto
from tests.conftest import _ENVIRONMENT
from tests.database.proof import Round, rounds


async def main(count: int, instances: int) -> list[Round]:
    moto, etcd, postgres = Moto(), Etcd(), Postgres()
    with tempfile.TemporaryDirectory() as folder:
        start_all(moto, etcd, postgres)
        try:
            return await rounds(moto, etcd, postgres, "database-proof", Path(folder), count, instances=instances)
        finally:
            for child in (moto, etcd, postgres):
                child.stop()


if __name__ == "__main__":
    import os

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--instances", type=int, default=3)
    asked = parser.parse_args()
    os.environ.update(_ENVIRONMENT)
    found = trio.run(main, asked.rounds, asked.instances)
    for number, one in enumerate(found, 1):
        print(number, one)
    good = sum(one.holds for one in found)
    slowest = max(one.seconds for one in found)
    print(f"{good} of {len(found)} rounds without a connection of the fleet; the longest drain took {slowest} s")
    sys.exit(0 if good == len(found) else 1)
