"""A message's journey, from the receive to its settlement; and the drain, which ends the journey of them all.

Lives here: intake, ledger, message tasks, leases, settlement, the circuit breaker, and the `Queue` protocol that they need.
Never here: AWS, HTTP, a wall clock. Whatever implements `queue.Queue` can be consumed from, in real or in virtual time.
Journey: `intake.py` → `deliveries.py` → `ledger.py` → `tasks.py` → the processor → `fates.py` → `settlement.py`; beside it
`leases.py` (the heartbeat) and `breaker.py`. What decides without acting stands in files of its own, which the tests walk:
`delivery_states.py`, `gathering.py`, `settlement_batches.py`, `breaker_state.py`.
Begin reading at `worker.py`, which puts the parts together. The names below are the modules that other suites may use.
"""

__all__ = ["breaker_state", "ledger", "observed_queue", "observer", "queue", "worker"]
