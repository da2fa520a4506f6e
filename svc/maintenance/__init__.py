"""What maintenance means: the key's value, the phases as a table, the handlers that drain, the fleet and its answers.

Never here: etcd, HTTP, SQS. All of it runs in virtual time.
Journey: a switch (`switch_value.py` → `manager.py` by the table in `phases.py` → handlers such as `gate.py` → `fleet.py`).
Begin reading at `manager.py`. The names below are the modules that other suites may use.
"""

__all__ = [
    "fence",
    "fleet",
    "fleet_table",
    "gate",
    "handler",
    "manager",
    "orders",
    "phases",
    "registration",
    "several",
    "standalone",
    "suspension",
    "switch_value",
    "user_handler",
]
