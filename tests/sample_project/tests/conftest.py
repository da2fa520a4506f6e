import orders
import pytest


@pytest.fixture(autouse=True)
def warehouse() -> orders.Warehouse:
    orders.warehouse = orders.Warehouse()
    return orders.warehouse
