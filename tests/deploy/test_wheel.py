"""What is installed from the wheel: its contents, and a user's project (sample_project/) that is tested with nothing else.

These take a minute, nearly all of it pip's, and run when they are asked for; what the wheel is made from is looked at always:

    pytest -m slow tests/deploy/test_wheel.py
"""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

SCRIPTS = {"svc": "svc.__main__:main"}
PLUGINS = {"svc": "svc.pytest_plugin"}


def test_the_wheel_is_to_hold_the_package_and_nothing_else() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert told["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["svc"]}
    assert (told["project"]["scripts"], told["project"]["entry-points"]["pytest11"]) == (SCRIPTS, PLUGINS)
    assert (ROOT / "svc" / "py.typed").exists()
    assert not [path for path in (ROOT / "svc").rglob("*") if path.name.startswith(("test_", "conftest"))]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What the command prints; a failure shows it."""
    foreign = ("PYTHON", "PIP_REQUIRE", "COV_", "PYTEST_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    (built,) = folder.glob("svc-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = ConfigParser()
        (about,) = (name for name in names if name.endswith("entry_points.txt"))
        entry_points.read_string(archive.read(about).decode())
    assert "svc/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"svc"}
    assert not [name for name in names if Path(name).name.startswith(("test_", "conftest")) or "sample" in name]
    modules = {f"svc/{path.name}" for path in (ROOT / "svc").glob("*.py")}
    assert modules <= names
    assert dict(entry_points["pytest11"]) == PLUGINS
    assert dict(entry_points["console_scripts"]) == SCRIPTS


@pytest.mark.slow
def test_a_users_project_is_tested_with_what_the_wheel_installs(wheel: Path, tmp_path: Path) -> None:
    project = tmp_path / "orders"
    shutil.copytree(
        ROOT / "tests" / "sample_project",
        project,
        ignore=lambda folder, names: [
            name
            for name in names
            if name.startswith((".", "__")) or (name == "conftest.py" and Path(folder).name != "tests")
        ],
    )
    assert sorted(path.name for path in project.iterdir()) == ["orders.py", "pyproject.toml", "tests"]
    venv.create(tmp_path / "empty", with_pip=True, symlinks=True)
    programs = tmp_path / "empty" / "bin"
    python = programs / "python"

    run(python, "-m", "pip", "install", "-q", f"{wheel}[test]")
    assert run(programs / "svc", "--version").startswith("svc, version ")
    assert "maintenance" in run(python, "-m", "svc", "--help", cwd=tmp_path)
    found = run(python, "-c", "import svc; print(svc.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(tmp_path / "empty")
    told = run(python, "-m", "pytest", cwd=project)
    assert "8 passed, 1 skipped" in told
    assert 'is not installed: pip install "svc[dev]"' in told

    run(python, "-m", "pip", "install", "-q", f"{wheel}[dev,test]")
    assert "9 passed" in run(python, "-m", "pytest", cwd=project)
