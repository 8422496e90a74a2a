"""Which of the processes below this one is what."""

from pathlib import Path

import psutil

#: What is in the command line of a process, and what the process is. The first that fits counts.
_ROLES = {
    "spawn_main": "engine",
    "decoder_child": "decoder",
    "worker.node": "celery",
    "bench.idle_node": "celery",
    "-server": "redis",
    "worker run": "launcher",
}


def by_role() -> dict[str, int]:
    """Process ids of a node and its Redis by role; there must be one node. The decoder is one of them if several."""
    found: dict[str, int] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:  # it has just ended
            continue
        role = next((role for part, role in _ROLES.items() if part in command), None)
        if role is not None:
            found[role] = process.pid
    return found


def memory_mib(pid: int) -> tuple[float, float]:
    """What a process has resident, and the most that it has had (`VmRSS` and `VmHWM` of Linux), in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    now, most = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return round(now, 1), round(most, 1)
