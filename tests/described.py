"""Holds the answers of an application to the API's description, wherever they are met: status, type, and schema of the body."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import quart
from quart_trio import QuartTrio

from svc.api.openapi import DESCRIPTION

Answered = tuple[str, str, int]
"""Method, path as in the description, status."""

AS_EVERYWHERE = (404, 405, 500)
"""Not described: no such endpoint, another method, a fault of our own."""


@cache
def validator(method: str, path: str, status: int) -> jsonschema.Draft202012Validator:
    content = DESCRIPTION["paths"][path][method]["responses"][str(status)]["content"]
    schema = content["application/json"]["schema"]
    return jsonschema.Draft202012Validator({**schema, "components": DESCRIPTION["components"]})


def answers(document: Any) -> set[Answered]:
    """Everything that the description says may be answered."""
    return {
        (method, path, int(status))
        for path, item in document["paths"].items()
        for method, operation in item.items()
        for status in operation["responses"]
    }


def hold_to_description(app: QuartTrio, met: Callable[[Answered], object] = lambda answered: None) -> None:
    """From now on an answer that is not as described fails the request, and with it the test."""

    @app.after_request
    async def check(answer: quart.Response) -> quart.Response:
        rule, method = quart.request.url_rule, quart.request.method.lower()
        if rule is None or answer.status_code in AS_EVERYWHERE:
            return answer
        method = "get" if method == "head" else method
        described = DESCRIPTION["paths"][rule.rule][method]["responses"].get(str(answer.status_code))
        assert described is not None, f"{method} {rule.rule} answered {answer.status_code}: that is not described"
        assert answer.mimetype in described["content"], f"{method} {rule.rule} answered {answer.mimetype}"
        if answer.mimetype == "application/json":
            validator(method, rule.rule, answer.status_code).validate(await answer.get_json())
        met((method, rule.rule, answer.status_code))
        return answer
