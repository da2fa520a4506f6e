"""A handler of the user's own in a real instance: in the reports; and what is told when there is none of that name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svc.devstack.stack import Etcd, Moto
from tests.live import stand
from tests.service.test_live import switch

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "cache.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the handler of the documents."""
    shutil.copy(EXAMPLE, tmp_path)
    return tmp_path


@pytest.mark.slow
async def test_it_drains_with_the_rest(moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, folder: Path) -> None:
    async with stand(moto, etcd.endpoint, queue_name, key_prefix + "maintenance", folder / "record") as place:
        path = f"{place.environ['PYTHONPATH']}:{folder}"
        service = await place.start(PYTHONPATH=path, MAINTENANCE_HANDLERS="cache:handler")
        await service.ready()
        stats = (await service.get("/messages/stats")).json()
        assert stats["handlers"] == ["http", "sqs", "cache"]
        assert stats["cache"] == {"dirty": 0}
        assert (await service.get("/health")).json()["handlers"] == {"http": True, "sqs": True, "cache": True}
        await switch(place, "true")
        assert (await service.reaches("maintenance"))["drain"]["cache"] == {"flushed": 0}


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"MAINTENANCE_HANDLERS": "cache:nobody"}, "MAINTENANCE_HANDLERS names 'cache:nobody': module 'cache' has no attribute"),
        pytest.param(
            {"DATABASE_URL": "postgresql://h/d?nothing=x"}, "DATABASE_URL: libpq cannot read it as a connection URI",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_wrong_name_ends_the_start(folder: Path, setting: dict[str, str], fault: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "svc", "run"],
        env={**os.environ, "PYTHONPATH": f"{os.getcwd()}:{folder}", **setting},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert fault in done.stderr
