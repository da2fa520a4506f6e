"""What to connect with, where an operator's slip is met. No server is needed."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from svc.cli.main import cli
from svc.database.conninfo import UnusableDatabase, check, place
from svc.settings.loading import load
from tests.database.conftest import database

ODD = pytest.mark.parametrize("host", ["db..example", "d" * 64 + ".example", "good.example,.bad"])


@ODD
@pytest.mark.parametrize("command", [["run"], ["database", "init"]])
def test_a_name_that_cannot_be_looked_up_ends_the_start(host: str, command: list[str]) -> None:
    told = CliRunner(env={"DATABASE_URL": f"postgresql://ann:sesame@{host}/orders"}).invoke(cli, command)
    assert told.exit_code == 2, told.output
    assert "DATABASE_URL: a part of its host's name is empty, or longer than 63 characters (" in told.output
    assert "sesame" not in told.output


def test_so_does_one_of_libpqs_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db..example")
    with pytest.raises(UnusableDatabase, match=r"\(db\.\.example\)"):
        check(load({"DATABASE_URL": "postgresql:///orders"}))


@pytest.mark.parametrize(
    "host", ["", "127.0.0.1", "[::1]", "db.example.", "a.example,b.example:6432", "%2Ftmp", "bücher.example"]
)
def test_what_can_be_looked_up_is_left_to_the_look_up(host: str) -> None:
    check(load({"DATABASE_URL": f"postgresql://ann@{host}/orders"}))


def test_what_is_not_looked_up_may_have_any_name() -> None:
    check(load({"DATABASE_URL": "postgresql://ann@db..example/orders?hostaddr=127.0.0.1"}))


@ODD
async def test_a_name_that_cannot_be_looked_up_is_told(host: str) -> None:
    """Python's look-up raises a UnicodeError of its own, which would end the service."""
    with pytest.raises(UnusableDatabase, match="a part of its host's name is empty, or longer"):
        await database(f"postgresql://ann:sesame@{host}/orders", "x").open(0, 1)


async def test_a_password_that_is_renewed_by_what_is_no_text_is_told(tmp_path: Path) -> None:
    """At the start it was looked at."""
    file = tmp_path / "password"
    file.write_text("sesame")
    held = database("postgresql://ann@127.0.0.1:1/orders", "x", DATABASE_PASSWORD_FILE=str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UnusableDatabase, match="password holds no text"):
        await held.open(0, 1)


@pytest.mark.parametrize(
    "url", ["postgresql://a:%40%2F@h/d", "postgresql://h/d?user=ann@h", "postgresql:///d?host=/tmp&user=a@b"]
)
def test_an_at_sign_may_stand_where_libpq_takes_it(url: str) -> None:
    assert place(load({"DATABASE_URL": url, "SQS_QUEUE_URL": "http://h/1/q"})).startswith("d at ")
