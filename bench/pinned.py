"""Runs a command on some of the cores: `python -m bench.pinned 0,1 COMMAND …`. It never learns of the others."""

import os
import sys


def main() -> None:
    """Become the command."""
    cores, *command = sys.argv[1:]
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
