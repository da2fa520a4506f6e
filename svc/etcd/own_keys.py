"""What a watch says of the two keys of this instance, its registration and its membership: whether somebody else has had them.

It costs nothing while nothing happens, which reading them again and again does. Nothing here reads or writes a key.
"""

import math
from collections.abc import Callable, Mapping

from svc.etcd.errors import Trouble
from svc.etcd.link import Watch


class OwnKeys:
    """`on_news` is called when there may be something to look at."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._on_news = on_news
        self._seen: dict[str, float] = {}
        self.watched = False
        """Whether what happens to them is told."""

    async def follow(self, stream: Watch) -> None:
        """Take what the watch says until it ends; then they count as changed, and are not watched any more."""
        self._seen, self.watched = {}, True
        while not isinstance(news := await stream.receive(), Trouble) and news.ended is None:
            for change in news.changes:
                self._seen[change.key] = max(change.revision, self._seen.get(change.key, 0))
            if news.changes:
                self._on_news()
        self._seen, self.watched = {"": math.inf}, False
        self._on_news()

    def look(self) -> None:
        """They are read now, which says more than what was told until now."""
        self._seen = {}

    def changed(self, left: Mapping[str, int]) -> bool:
        """Whether they may be otherwise than we have left them: at these revisions. What we write ourselves is told too, perhaps
        before we know its revision: ask when no write is under way."""
        return any(revision > left.get(key, 0) for key, revision in self._seen.items())
