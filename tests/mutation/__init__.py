"""Mutation testing by a tool: mutmut changes the files that decide, one small change at a time, and the in-memory tests have to
notice each. `python -m tests.mutation` is the command; `docs/proofs.md` tells how to use it.

Begin reading at `__main__.py`. `kept.txt` explains, a line each, the changes that no test can notice or needs to.
"""
