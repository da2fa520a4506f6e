"""What the tests of the API share."""

from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.routing.rules import Rule


@pytest.fixture(scope="session", autouse=True)
def routes_are_compiled_once() -> Iterator[None]:
    """For each route of each app werkzeug writes two functions and compiles them: a third of the time of a short test, and each
    makes an app. They depend on the route's rule alone."""
    compiled: dict[Any, Any] = {}
    compile_one = Rule._compile_builder

    def once(self: Rule, append_unknown: bool = True) -> Any:
        rule = (*self._trace, append_unknown, repr(self.defaults))
        if rule not in compiled:
            compiled[rule] = compile_one(self, append_unknown)
        return compiled[rule]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", once)
        yield
