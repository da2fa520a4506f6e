"""Every command on every page exists, with these options; what can be run in a second is run."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import click
import jsonschema
import pytest
import yaml

from svc.api.openapi import DESCRIPTION
from svc.cli.main import cli
from svc.settings import Settings, variable
from tests.docs.pages import ROOT, blocks

COMPOSE = yaml.safe_load((ROOT / "compose.yml").read_text())
KNOWN = {
    "svc", "curl", "docker", "pytest", "python", "python3", "sphinx-build", "promtool", "psql", "kubectl", "etcdctl", "pip", "uv",
    "ruff", "mypy", "pre-commit", "export", "cd", "watch", "sleep", "echo", "jq", "aws", "pip-audit", "for", "do", "done",
}  # fmt: skip


class Command(NamedTuple):
    place: str
    words: list[str]
    environ: dict[str, str]


def commands() -> Iterator[Command]:
    """The simple commands of all blocks of shell, without their variables and the path of `.venv/bin`."""
    for block in blocks("sh"):
        text = block.text.replace("\\\n", " ")
        for number, line in enumerate(text.splitlines()):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word in (";", "&&", "|", ")"):
                    yield from simple(f"{block.page}:{block.line + number}", words)
                    words = []
                else:
                    words.append(word)


def simple(place: str, words: list[str]) -> Iterator[Command]:
    environ = {}
    while words and (words[0] == "do" or re.match(r"[A-Z_]+=", words[0])):
        if words[0] != "do":
            name, _, value = words[0].partition("=")
            environ[name] = value
        words = words[1:]
    if words:
        yield Command(place, [re.sub(r"^(\.\./)?\.venv/bin/", "", words[0]), *words[1:]], environ)


ALL = list(commands())


def of(program: str) -> list[Command]:
    return [command for command in ALL if command.words[0] == program]


def test_no_command_is_of_a_program_that_these_tests_do_not_know() -> None:
    assert {command.words[0] for command in ALL} <= KNOWN
    assert len(ALL) > 60


def svc_commands() -> Iterator[Command]:
    """Those within other commands (`kubectl exec … -- svc …`) too."""
    for command in ALL:
        if "svc" in command.words and command.words[0] in ("svc", "kubectl", "docker"):
            at = command.words.index("svc")
            if command.words[0] == "svc" or command.words[at - 1] in ("--", "sqs-service"):
                yield command._replace(words=command.words[at:])


def test_commands_of_svc_have_these_options() -> None:
    found = list(svc_commands())
    assert len(found) > 15
    for place, words, environ in found:
        command: click.Command = cli
        rest = [word for word in words[1:] if not word.startswith("#")]
        while isinstance(command, click.Group):
            inner = command.get_command(click.Context(command), rest[0])
            assert inner is not None, f"{place}: there is no command {rest[0]!r}"
            command, rest = inner, rest[1:]
        command.make_context(command.name, rest)  # raises for an option that there is not
        known = {variable(field) for field in Settings.model_fields}
        assert {name for name in environ if not name.startswith(("OTEL_", "AWS_"))} <= known, place


def test_requests_are_those_of_the_api() -> None:
    found = [command for command in ALL if "curl" in command.words]
    inner = [shlex.split(command.words[-1]) for command in of("watch")]
    ours = 0
    for place, words in [(command.place, command.words) for command in found] + [("watch", words) for words in inner]:
        url = next(word for word in words if word.startswith("http"))
        if urlsplit(url).port != 8082:
            continue
        ours += 1
        method = words[words.index("-X") + 1].lower() if "-X" in words else "get"
        path = urlsplit(url).path or "/"
        operation = DESCRIPTION["paths"].get(path, {}).get(method)
        assert operation is not None, f"{place}: {method} {path} is not in the description"
        if "-d" in words:
            body = json.loads(words[words.index("-d") + 1])
            jsonschema.validate(body, operation["requestBody"]["content"]["application/json"]["schema"])
    assert ours > 15


def test_pytest_and_modules_are_given_what_there_is() -> None:
    for place, words, _ in of("pytest"):
        for word in words[1:]:
            if "/" in word and word != "docs/faults.md":
                assert (ROOT / word).exists(), f"{place}: {word}"
    for place, words, _ in of("python"):
        assert words[1] == "-m", place
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), f"{place}: {words[2]}"


@pytest.mark.parametrize("module", ["tests.search", "tests.fleet", "tests.bench", "tests.faults.soak"])
def test_options_of_the_proofs(module: str) -> None:
    folder = ROOT / module.replace(".", "/")
    source = (folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text()
    found = [command for command in of("python") if command.words[2] == module]
    assert found
    for place, words, _ in found:
        for word in words[3:]:
            if word.startswith("--"):
                assert f'"{word}"' in source, f"{place}: {word}"


def test_compose_is_asked_for_services_and_profiles_that_it_has() -> None:
    found = [command for command in of("docker") if command.words[1] == "compose"]
    assert len(found) >= 10
    profiles = {profile for service in COMPOSE["services"].values() for profile in service.get("profiles", ())}
    for place, words, _ in found:
        if "--profile" in words:
            assert words[words.index("--profile") + 1] in profiles, place
        if "exec" in words:
            service = next(
                word for word in words[words.index("exec") + 1 :] if not word.startswith("-") and not word.isdigit()
            )
            assert service in COMPOSE["services"], place


def test_the_seed_has_its_form_on_the_page_of_compose() -> None:
    """What the document that the project was created from tells a user to type, with today's names."""
    page = (ROOT / "docs" / "compose.md").read_text()
    for typed in (
        "docker compose up -d",
        "curl http://localhost:8082/health",
        "curl http://localhost:8082/queue/info",
        "curl -X POST http://localhost:8082/messages/send",
        "curl -s http://localhost:8082/messages/stats | jq .sqs",
        "docker compose exec sqs-etcd etcdctl put /maintenance/sqs-service true",
        "docker compose exec sqs-etcd etcdctl put /maintenance/sqs-service false",
        "docker compose exec queue-debug curl -X POST",
        "Action=SendMessage&MessageBody=Manual+test+message&Version=2012-11-05",
        "Action=ReceiveMessage&Version=2012-11-05",
        "docker run -d --name localstack",
        "docker run -d --name sqs-etcd",
        "sqs create-queue --queue-name test-queue",
        'export SQS_QUEUE_URL="http://localhost:4566/000000000000/test-queue"',
        'export AWS_ENDPOINT="http://localhost:4566"',
        'export ETCD_ENDPOINTS="localhost:2399"',
        "docker compose down -v",
        "docker compose down --rmi all -v",
    ):
        assert typed in page, typed


def test_json_on_pages_is_json() -> None:
    for block in blocks("json"):
        json.loads(block.text)
