"""The embedded stack of `svc dev` and of the tests: a local SQS (moto's server) and a real etcd, as child processes.

Never here: anything that production needs. Begin reading at `stack.py`.
The names below are the modules that other suites may use.
"""

__all__ = ["announcement", "child", "postgres", "stack"]
