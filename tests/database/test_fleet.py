"""A slice of the proof (`python -m tests.database`): one round with an instance of each colour."""

from pathlib import Path

import pytest

from svc.devstack.postgres import Postgres
from svc.devstack.stack import Etcd, Moto
from tests.database.proof import rounds

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.mark.slow
async def test_in_maintenance_the_fleet_has_no_connection(
    moto: Moto, etcd: Etcd, postgres: Postgres, queue_name: str, tmp_path: Path
) -> None:
    (found,) = await rounds(moto, etcd, postgres, queue_name, tmp_path, 1, instances=3)
    assert found.holds, found
