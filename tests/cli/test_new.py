"""`svc new`: what it writes runs, is linted and typed; and what it does not write over."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import httpx
import pytest
from click.testing import CliRunner, Result

from svc.cli.commands import shell_prefix
from svc.cli.main import cli
from svc.cli.project import COMBINATIONS, Project, Runtime, files
from tests.preloaded import SVC

EVERY = [
    Project(f"p{number}", runtime, envelopes, batch)
    for number, (runtime, envelopes, batch) in enumerate(
        itertools.product(get_args(Runtime), COMBINATIONS, (None, 500)), start=1
    )
]


@pytest.fixture(autouse=True)
def without_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tests put their folder on the path of this same process, with an mails.py in it: that name would be taken."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).name != "examples"])
    monkeypatch.delitem(sys.modules, "mails", raising=False)


def new(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["new", str(folder), *options])


def written(project: Project, folder: Path) -> Path:
    for path, text in files(project).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def run(*command: str, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTEST_ADDOPTS": "-p no:schemathesis"},  # here for another test; it takes a second or two
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_new_project_s_tests_pass_and_its_texts_name_it(tmp_path: Path) -> None:
    said = new(tmp_path / "order-mails", "--envelope", "sns", "--runtime", "asyncio")
    assert said.exit_code == 0, said.output
    folder = tmp_path / "order-mails"
    assert "MESSAGE_PROCESSOR=order_mails:handle" in said.output
    there_is_virtual_time = sys.version_info < (3, 14)  # for asyncio
    assert ("3 passed" if there_is_virtual_time else "3 skipped") in run("-m", "pytest", "-q", cwd=folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)} >= {
        "order_mails.py", "tests/test_order_mails.py", "sample.json", "Dockerfile", "compose.yml", "README.md", "pyproject.toml",
        ".gitignore", ".dockerignore",
    }  # fmt: skip
    for path in ("Dockerfile", "compose.yml", "README.md", "pyproject.toml", ".dockerignore"):
        text = (folder / path).read_text()
        assert "order" in text
        assert "$name" not in text
        assert "$module" not in text
    assert "FROM ${SVC_IMAGE}" in (folder / "Dockerfile").read_text()
    assert folder.stat().st_mode & 0o777 == 0o755


def test_without_pytest_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "extra `test`" not in new(tmp_path / "there").output
    monkeypatch.setitem(sys.modules, "pytest_trio", None)  # as where it is not installed
    assert "pytest   # comes with svc's extra `test`\n" in new(tmp_path / "absent").output


def test_svc_is_named_as_the_shell_in_that_folder_finds_it() -> None:
    programs = Path(sys.executable).parent
    assert shell_prefix(programs.parent, search="") == "bin/"
    assert shell_prefix(programs.parent / "a" / "b", search="") == "../../bin/"
    assert shell_prefix(programs.parent, search=str(programs)) == ""


def test_every_project_is_linted_and_formatted(tmp_path: Path) -> None:
    for project in EVERY:
        written(project, tmp_path / project.name)
        sample = json.loads((tmp_path / project.name / "sample.json").read_text())["message"]
        assert isinstance(sample, str)
        assert json.loads(sample)
    assert len(EVERY) == 36
    rules = "E,F,W,I,UP,B,C4,SIM,RUF,PT,RET,PIE,N"
    own = f"src = {json.dumps([project.name for project in EVERY])}"
    run("-m", "ruff", "check", "--isolated", "--config", own, "--select", rules, ".", cwd=tmp_path)
    run("-m", "ruff", "format", "--isolated", "--check", ".", cwd=tmp_path)


@pytest.mark.slow
def test_every_project_is_typed_and_its_tests_pass(tmp_path: Path) -> None:
    for project in EVERY:
        written(project, tmp_path / project.name)
    modules = [f"{project.name}/{project.module}.py" for project in EVERY]
    run("-m", "mypy", "--strict", "--python-version", "3.11", *modules, cwd=tmp_path)
    for project in EVERY[::5]:  # every runtime, every envelope, with and without batches
        there_is_virtual_time = project.runtime != "asyncio" or sys.version_info < (3, 14)
        told = " passed" if there_is_virtual_time else " skipped"
        assert told in run("-m", "pytest", "-q", cwd=tmp_path / project.name)


@pytest.mark.parametrize("name", ["json", "tests", "trio", "Orders", "7up", "class", "a.b", "bücher", "-x", "a-"])
def test_a_name_that_cannot_be(name: str, tmp_path: Path) -> None:
    said = CliRunner().invoke(cli, ["new", "--", str(tmp_path / name)])
    assert said.exit_code == 2
    assert said.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_that_cannot_be(tmp_path: Path) -> None:
    said = new(tmp_path / "mails", "--envelope", "s3", "--envelope", "sns")
    assert said.exit_code == 2
    assert "no project is known for the envelopes s3, sns" in said.output
    assert new(tmp_path / "mails", "--batch", "0").exit_code == 2
    assert new(tmp_path / "mails", "--runtime", "gevent").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    folder.mkdir()
    assert new(folder).exit_code == 0  # it was empty
    (folder / "mails.py").write_text("mine")
    said = new(folder)
    assert said.exit_code == 2
    assert "not empty" in said.output
    assert (folder / "mails.py").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert new(tmp_path / "file").exit_code == 2
    said = new(tmp_path / "file" / "mails")
    assert said.exit_code == 1
    assert "could not be written" in said.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mails"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(), ("--runtime", "thread", "--envelope", "s3"), ("--runtime", "asyncio", "--batch", "100")]
)
def test_a_new_project_runs_and_drains(tmp_path: Path, options: tuple[str, ...]) -> None:
    """What its README says, typed by a user."""
    folder = tmp_path / "mails"
    assert new(folder, *options).exit_code == 0
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "MESSAGE_PROCESSOR": "mails:handle", "HTTP_PORT": "0"}
    sample = json.loads((folder / "sample.json").read_text())
    dev = [*SVC, "dev", "--messages", "0"]
    with subprocess.Popen(
        dev, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            url = next(line.split()[1] for line in process.stderr if line.strip().startswith("API "))
            while httpx.get(f"{url}/health").status_code != 200:
                assert process.poll() is None
            sent = httpx.post(f"{url}/messages/send", json=sample)
            assert sent.status_code == 200, sent.text
            assert process.stdout.readline().startswith("working on")
            for value in ("on", "off"):
                command = [*SVC, "maintenance", value, "--wait"]
                ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
                assert ran.returncode == 0, ran.stdout + ran.stderr
            assert httpx.get(f"{url}/messages/stats").json()["sqs"]["messages_processed"] == 1
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0
