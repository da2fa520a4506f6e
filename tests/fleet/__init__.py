"""The proof of the fleet with real processes: `python -m tests.fleet` (README, For contributors)."""
