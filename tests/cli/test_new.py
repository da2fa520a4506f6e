"""`svc new`: what it writes runs, is linted and typed; and what it does not write over."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner, Result

from svc.cli.main import cli
from svc.cli.project import COMBINATIONS, Project, Runtime, files

EVERY = [
    Project(f"p{number}", runtime, envelopes, batch)
    for number, (runtime, envelopes, batch) in enumerate(
        itertools.product(get_args(Runtime), COMBINATIONS, (None, 100)), start=1
    )
]


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
        env=os.environ | {"PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_new_project_s_tests_pass_and_its_texts_name_it(tmp_path: Path) -> None:
    said = new(tmp_path / "order-mails", "--envelope", "sns", "--runtime", "asyncio")
    assert said.exit_code == 0, said.output
    folder = tmp_path / "order-mails"
    assert "MESSAGE_PROCESSOR=order_mails:handle" in said.output
    assert "3 passed" in run("-m", "pytest", "-q", cwd=folder)
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
    for project in EVERY:
        assert " passed" in run("-m", "pytest", "-q", cwd=tmp_path / project.name)


@pytest.mark.parametrize("name", ["json", "tests", "trio", "Orders", "7up", "class", "a.b", "bücher", "-x", "a-"])
def test_a_name_that_cannot_be(name: str, tmp_path: Path) -> None:
    said = CliRunner().invoke(cli, ["new", "--", str(tmp_path / name)])
    assert said.exit_code == 2
    assert said.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_that_cannot_be(tmp_path: Path) -> None:
    said = new(tmp_path / "orders", "--envelope", "s3", "--envelope", "sns")
    assert said.exit_code == 2
    assert "no project is known for the envelopes s3, sns" in said.output
    assert new(tmp_path / "orders", "--batch", "0").exit_code == 2
    assert new(tmp_path / "orders", "--runtime", "gevent").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "orders"
    folder.mkdir()
    assert new(folder).exit_code == 0  # it was empty
    (folder / "orders.py").write_text("mine")
    said = new(folder)
    assert said.exit_code == 2
    assert "not empty" in said.output
    assert (folder / "orders.py").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert new(tmp_path / "file").exit_code == 2
    said = new(tmp_path / "file" / "orders")
    assert said.exit_code == 1
    assert "could not be written" in said.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "orders"]
