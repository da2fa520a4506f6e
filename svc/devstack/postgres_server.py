"""Starts PostgreSQL in a folder: makes its data there the first time, then becomes the server.

    python -I -S postgres_server.py INSTALLATION FOLDER PASSWORD_FILE [FLAG ...]

PostgreSQL refuses to run as root, as everything does in many containers. Then it runs as the user `nobody`, to whom FOLDER is
given; an installation that he cannot reach (a virtual environment below /root) is copied there.

Run by its path, in isolated mode, and below the leash (`leash.py`): the standard library only.
"""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path


def main(installation: Path, folder: Path, password_file: Path, flags: list[str]) -> None:
    """Never returns."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, password_file):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        installation = reachable(installation, folder / "installation")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    data = folder / "data"
    if not (data / "PG_VERSION").exists():
        shutil.rmtree(data, ignore_errors=True)
        subprocess.run(  # noqa: S603 - our own program
            [
                str(installation / "bin" / "initdb"), f"--pgdata={data}", "--username=postgres", "--auth=scram-sha-256",
                f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "-c", "scram_iterations=1",
                "--no-sync", "--no-instructions",
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    server = str(installation / "bin" / "postgres")
    os.execv(server, [server, "-D", str(data), *flags])  # noqa: S606 - our own program


def reachable(installation: Path, copy: Path) -> Path:
    """The installation, or a copy of it that everybody can read. Beside the package are libraries that it needs."""
    if all(folder.stat().st_mode & 0o001 for folder in installation.resolve().parents):
        return installation
    package = installation.parent
    if not copy.exists():
        shutil.copytree(installation, copy / package.name / installation.name, ignore=shutil.ignore_patterns("*.a"))
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
    return copy / package.name / installation.name


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
