"""Become another program that Linux kills when its parent dies: `die_with_parent.py PARENT_PID PROGRAM ARGUMENTS…`.

`subprocess`' `preexec_fn` could do this without a program of its own, but it runs Python between fork and exec in a
copy of a process that has other threads (rich draws its spinner in one), where any lock that such a thread holds is
held for ever. Here the process is fresh and has one thread. It costs about 20 ms a start.

The signal comes when the *thread* that started the process ends; so only a main thread starts children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: From <linux/prctl.h>. The wish outlives execve(2), see prctl(2).
PR_SET_PDEATHSIG = 1

#: What a shell answers for a program that it cannot run.
CANNOT_RUN = 127


def main() -> None:
    """Replace this process by the program that the command line names."""
    parent_pid, *command = sys.argv[1:]
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the wish was made.
    if os.getppid() != int(parent_pid):
        sys.exit("the parent process has ended already")
    try:
        os.execvp(command[0], command)  # noqa: S606 - our own children, no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.exit(CANNOT_RUN)


if __name__ == "__main__":
    main()
