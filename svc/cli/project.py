"""The files of a new project: a processor, its test, and what runs both. Pure: from what `svc new` was asked for to texts.

The processor and its test are put together here, because every option changes them; the rest stands in `templates/`.
"""

import json
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Literal

from svc.settings import Settings

Runtime = Literal["trio", "asyncio", "thread"]

COMBINATIONS: Mapping[tuple[str, ...], tuple[str, str]] = {
    # envelopes, the outer one first: (how a test puts a message, with {id} for its payload; imports of that test)
    (): ("svc_queue.put({payload})", ""),
    ("sns",): ("svc_queue.put_sns({payload})", ""),
    ("eventbridge",): ("svc_queue.put_event({payload})", ""),
    ("s3",): ('svc_queue.put_s3("in/7.csv")', ""),
    ("sns", "eventbridge"): ("svc_queue.put_sns(event_body({payload}))", "event_body"),
    ("sns", "s3"): ('svc_queue.put_sns(s3_body("in/7.csv"))', "s3_body"),
}

TEMPLATES = ("README.md", "Dockerfile", "compose.yml", "pyproject.toml", "gitignore", "dockerignore")

SLEEP = {"trio": "await trio.sleep(1)", "asyncio": "await asyncio.sleep(1)", "thread": "time.sleep(0.1)"}
MODULE = {"asyncio": "asyncio", "thread": "time"}


USUAL_CONCURRENCY = int(Settings.model_fields["max_concurrency"].default)


class BadProject(ValueError):
    """It cannot be made. The text says why."""


@dataclass(frozen=True, slots=True)
class Project:
    """What is asked for. Raises `BadProject`."""

    name: str
    """Of the folder, the queue and the container: letters, digits, `-` and `_`."""
    runtime: Runtime = "trio"
    envelopes: tuple[str, ...] = ()
    """The outer one first."""
    batch: int | None = None
    """Messages of a batch; None: one at a time."""

    def __post_init__(self) -> None:
        letters = self.name.replace("-", "").replace("_", "")
        good = (
            self.module.isidentifier() and self.name.isascii() and letters.isalnum() and self.name == self.name.lower()
        )
        if not good or keyword.iskeyword(self.module) or not (self.name[0].isalpha() and self.name[-1].isalnum()):
            raise BadProject(
                f"{self.name!r} cannot be the name of a project: small letters and digits, with - or _ between them, beginning "
                "with a letter"
            )
        if self.envelopes not in COMBINATIONS:
            known = "; ".join(", ".join(one) for one in COMBINATIONS if one)
            raise BadProject(f"no project is known for the envelopes {', '.join(self.envelopes)}; there are: {known}")

    @property
    def module(self) -> str:
        """Where the processor stands."""
        return self.name.replace("-", "_")

    @property
    def concurrency(self) -> int | None:
        """`MAX_CONCURRENCY`: one batch gathers while another is at work; None where svc's own does."""
        return 2 * self.batch if self.batch is not None and 2 * self.batch > USUAL_CONCURRENCY else None

    @property
    def variables(self) -> str:
        """What has to be set, as before a command in a shell."""
        held = f"MESSAGE_PROCESSOR={self.module}:handle"
        return held if self.concurrency is None else f"{held} MAX_CONCURRENCY={self.concurrency}"

    @property
    def has_payload(self) -> bool:
        """Whether the payload has a type of the user's; S3's records have S3's."""
        return self.envelopes[-1:] != ("s3",)


def files(project: Project) -> Mapping[str, str]:
    """The texts, by their paths below the project's folder."""
    held = resources.files("svc.cli") / "templates"
    texts = {}
    for name in TEMPLATES:
        text = Template((held / name).read_text(encoding="utf-8"))
        path = name if name not in ("gitignore", "dockerignore") else f".{name}"
        texts[path] = text.substitute(name=project.name, module=project.module, variables=project.variables)
    return {
        **texts,
        f"{project.module}.py": _processor(project),
        f"tests/test_{project.module}.py": _test(project),
        "sample.json": json.dumps({"message": _sample(project.envelopes)}) + "\n",
    }


def _processor(project: Project) -> str:
    options = [] if project.runtime != "asyncio" else ['runtime="asyncio"']
    if project.envelopes:
        shown = [f'"{one}"' for one in project.envelopes]
        options.append(f"envelope={shown[0]}" if len(shown) == 1 else f"envelope=({', '.join(shown)})")
    if project.batch is not None:
        options.append(f"batch={project.batch}, linger=2.0")
    names = ["Batch"] if project.batch is not None else []
    names += ["Message"] if project.batch is None or not project.has_payload else []
    names.append("processor")
    lines = ['"""What is done with a message: the service calls `handle`."""', ""]
    third = ["from pydantic import BaseModel"] if project.has_payload else []
    third.append(f"from svc import {', '.join(names)}")
    if project.runtime == "trio":
        lines.append("import trio")
    else:
        lines += [f"import {MODULE[project.runtime]}", ""]
    lines += [*third, "", ""]
    if project.has_payload:
        lines += [
            "class Payload(BaseModel):",
            '    """What a message holds. One that does not is rejected, with the wrong fields."""',
            "",
            "    id: int",
            "",
            "",
        ]
    define = "def" if project.runtime == "thread" else "async def"
    return "\n".join([*lines, f"@processor({', '.join(options)})", *_function(project, define), ""])


def _function(project: Project, define: str) -> list[str]:
    sleep = f"    {SLEEP[project.runtime]}  # your work"
    if project.batch is not None:
        batch = "Batch[Payload]" if project.has_payload else "Batch[Message]"
        told = "item.payload.id" if project.has_payload else "item.message.envelope"
        return [
            f"{define} handle(batch: {batch}) -> None:",
            '    """Return: all are done. Raise: all have failed, and come back.',
            "",
            '    One of them by itself: `item.retry(after=60)`, `item.reject("why")`.',
            '    """',
            "    for item in batch:",
            f'        print("working on", {told})',
            sleep,
        ]
    meaning = [
        '    """Return: it is done. Raise: it has failed, and comes back.',
        "",
        '    `raise svc.Retry(after=60)`: in a minute; `raise svc.Reject("why")`: never.',
        '    """',
    ]
    if project.has_payload:
        return [
            f"{define} handle(payload: Payload, message: Message) -> None:",
            *meaning,
            '    print("working on", payload.id, "of message", message.id)',
            sleep,
        ]
    return [
        f"{define} handle(message: Message) -> None:",
        *meaning,
        "    for record in message.envelope.records:",
        '        print("working on", record.bucket, record.key)',
        sleep,
    ]


_NO_VIRTUAL_TIME = [
    "pytestmark = pytest.mark.skipif(",
    "    sys.version_info >= (3, 14),",
    '    reason="processors on asyncio have no virtual time on 3.14: no trio-asyncio",',
    ")",
    "",
]


def _test(project: Project) -> str:
    put, imported = COMBINATIONS[project.envelopes]
    limit = "" if project.concurrency is None else f", MAX_CONCURRENCY={project.concurrency}"
    good, bad = put.format(payload='{"id": 7}'), put.format(payload='{"id": "seven"}')
    lines = [f"from {project.module} import handle", ""]
    if imported:
        lines.insert(0, f"from svc.testing import {imported}\n")
    if project.runtime == "asyncio":
        lines = ["import sys", "", "import pytest", *([] if imported else [""]), *lines, *_NO_VIRTUAL_TIME]
    lines += [
        "",
        "async def test_a_message_is_processed(svc_queue, svc_service, autojump_clock):",
        f"    sent = {good}",
        f"    service = await svc_service(handle{limit})",
        '    assert await service.outcome(sent) == "processed"',
        "",
        "",
    ]
    if project.has_payload:
        lines += [
            "async def test_what_is_no_payload_is_rejected(svc_queue, svc_service, autojump_clock):",
            f"    sent = {bad}",
            f"    service = await svc_service(handle{limit})",
            '    assert await service.outcome(sent) == "rejected"',
            "",
            "",
        ]
    return "\n".join(
        [
            *lines,
            "async def test_a_drain_waits(svc_queue, svc_service, autojump_clock):",
            f"    sent = {good}",
            f'    service = await svc_service(handle, DRAIN_TIMEOUT="30s"{limit})',
            "    await service.at_work(sent)",
            '    service.maintenance("on")',
            "    report = await service.drained()",
            "    assert report.error is None",
            '    assert await service.outcome(sent) == "processed"',
            "",
        ]
    )


def _sample(envelopes: Sequence[str]) -> str:
    """The body of a message that the processor takes."""
    from svc.testing import event_body, s3_body, sns_body

    body: object = {"id": 7}
    for envelope in reversed(envelopes):
        body = s3_body("in/7.csv") if envelope == "s3" else (sns_body if envelope == "sns" else event_body)(body)
    return body if isinstance(body, str) else json.dumps(body)
