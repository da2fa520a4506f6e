from cache import Cache, handler


async def test_it_is_written_back_when_the_service_drains():
    async with handler() as cache:
        cache.dirty.append("order 1")
        cache.enter()
        assert await cache.wait_drained(0) is None
        assert (cache.statistics(), cache.drain()) == ({"dirty": 0}, {"flushed": 1})
        assert isinstance(cache, Cache)
