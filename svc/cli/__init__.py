"""The command line: arguments → settings → logging → `trio.run` → an exit code. One file for each command.

Never here: building parts, defaults, decisions. `service.py` builds; `settings.py` knows the defaults.
Begin reading at `main.py`. No other suite uses anything of this one.
"""

__all__: list[str] = []
