"""A processor in whose process the protection of the ECS task lasts `PROTECTION_SECONDS` instead of half an hour.

The times stand to each other as they do otherwise: half of the protection is longer than `IDLE`, and the longest pause much
shorter than it. What the agent may take is not changed. Everything else is as in any process.
"""

import os

from svc import Message
from svc.telemetry import task_protection
from tests import recording

if seconds := os.environ.get("PROTECTION_SECONDS"):
    task_protection.MINUTES = float(seconds) / 60  # type: ignore[assignment]
    task_protection.IDLE = 1.0
    task_protection.FIRST_PAUSE, task_protection.LONGEST_PAUSE = 0.5, 2.0


async def handle(message: Message) -> None:
    await recording.handle(message)
