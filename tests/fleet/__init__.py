"""The proof of the fleet with real processes: `python -m tests.fleet` (docs/proofs.md)."""
