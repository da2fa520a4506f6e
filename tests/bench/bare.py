"""`python -m tests.bench.bare run`: `svc run` whose work nobody observes, to measure what observing costs."""

from typing import Any

from svc import core, service
from svc.__main__ import main


def _unobserved(*parts: Any, observer: object, **more: Any) -> core.Core:
    return core.Core(*parts, **more)


if __name__ == "__main__":
    service.Core = _unobserved  # type: ignore[assignment,misc]
    main()
