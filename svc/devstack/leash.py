"""A leash: runs one program as its child, and ends it when whoever holds the other end of standard input is gone.

    python -I -S leash.py DIRECTORY PROGRAM [ARGUMENT ...]

Prints the child's process id as one line, then waits. SIGUSR1: kill the child. The child ends: exit with its code.
Standard input ends (its holder closed it, or was killed, even with SIGKILL): kill the child, remove DIRECTORY, exit.

Why not prctl(PR_SET_PDEATHSIG): it is Linux only, and it fires when the *thread* that started the child ends
(prctl(2)); the worker threads from which Trio starts things end after ten idle seconds. Why not watch from within the
child: etcd is not ours, and a child that was frozen with SIGSTOP watches nothing.

It is run by its path, in isolated mode: importing the package would cost more than everything it does. So it must
never import anything outside the standard library.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading


def main(directory: str, program: list[str]) -> None:
    """Never returns: exits with the child's code, 1 when a signal ended it, 127 when it cannot be started."""
    # A handler, not SIG_IGN: ignored signals stay ignored across exec, and it is the child that these are for. They
    # are sent to the whole process group; the leash has to outlive its child to reap it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child: subprocess.Popen[bytes] | None = None
    kill_asked = False

    def kill(*_: object) -> None:
        nonlocal kill_asked
        kill_asked = True
        if child is not None:
            child.kill()

    signal.signal(signal.SIGUSR1, kill)
    try:
        # A pipe of our own as its standard input: a child that watches it learns of it when the leash itself is killed.
        child = subprocess.Popen(program, stdin=subprocess.PIPE)  # noqa: S603 - what our parent asks for
    except OSError as error:
        print(f"cannot start {program[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)

    if kill_asked:  # while it was being started
        child.kill()
    holder_gone = threading.Event()

    def end_with_holder() -> None:
        while os.read(0, 4096):
            pass
        holder_gone.set()
        child.kill()
        child.wait()
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(1)

    print(child.pid, flush=True)
    watching = threading.Thread(target=end_with_holder, daemon=True)
    watching.start()
    code = child.wait()
    if holder_gone.is_set():
        watching.join()  # it is removing the directory, and exits
    os._exit(code if 0 <= code < 256 else 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
