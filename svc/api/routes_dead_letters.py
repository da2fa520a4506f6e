"""`GET /dead-letters`: the last dead letters with their reasons, when an operator asks for them.

A look receives: each is charged one receive, and is visible to others again when the look has ended. So nothing asks by itself,
who asks needs the token, and there is one look at a time, bounded in number and time. Gated: a drain waits for it.
"""

from typing import Any

import quart
import trio
from quart_trio import QuartTrio

from svc.api import bodies
from svc.api.answers import Answer, authorise, error
from svc.api.request_bodies import letters_limit
from svc.api.routes_messages import ANSWER_TIMEOUT
from svc.core import Core
from svc.sqs import letters

LOOK_SECONDS = 5.0
"""Seconds in which receives begin."""

LONGEST_BODY, LONGEST_TEXT = 2000, 500
"""Characters of a body and of any other text: answers have to stay small. `svc dlq show` shows all."""


def add(app: QuartTrio, core: Core) -> None:
    one_at_a_time = trio.Semaphore(1)

    @app.get("/dead-letters")
    async def dead_letters() -> Answer:
        core.gate.knock()
        authorise(core.settings, token_needed=True)
        most = letters_limit(quart.request.args.getlist("limit"))
        try:
            one_at_a_time.acquire_nowait()
        except trio.WouldBlock:
            return error(409, "somebody else looks at this moment: look again when that has ended")
        try:
            with core.gate.let_in(), trio.move_on_after(ANSWER_TIMEOUT):
                found = await core.queue.look_at_dead_letters(most, seconds=LOOK_SECONDS)
                if found is None:
                    return error(409, "the queue has no dead-letter queue: it has no redrive policy")
                return {"dead_letters": [_shown(letter) for letter in found], "timestamp": bodies.now()}, 200
        finally:
            one_at_a_time.release()
        return error(504, f"SQS did not answer within {ANSWER_TIMEOUT:g} s")


def _shown(letter: Any) -> dict[str, Any]:
    told = letters.described(letter, bodies.utc_now())
    body = told["body"]
    attributes = {name[:LONGEST_TEXT]: _cut(held) for name, held in told["attributes"].items()}
    return {**_cut(told), "body": body[:LONGEST_BODY], "body_length": len(body), "attributes": attributes}


def _cut(texts: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:LONGEST_TEXT] if isinstance(value, str) else value for name, value in texts.items()}
