"""The process that `worker run` starts and watches: a Celery node with the options that we rely on."""

from __future__ import annotations

import os
import signal
import sys

from celery import platforms

from contract.names import QUEUES

#: Environment variable with the launcher's process id.
LAUNCHER_PID = "OSTEOPAN_LAUNCHER_PID"


def main() -> None:
    """Run the node until it is told to stop."""
    # A launcher that is killed takes its node along, and the node its child; the ledger has the job taken up again.
    platforms.set_pdeathsig("SIGKILL")
    if os.environ.get(LAUNCHER_PID, str(os.getppid())) != str(os.getppid()):
        sys.exit("the launcher ended before its node began")
    from worker.app import TAKE_NO_MORE, app, settings
    from worker.logs import configure_logs

    # The child inherits this, so that it is not killed by what it cannot answer yet.
    signal.signal(TAKE_NO_MORE, signal.SIG_IGN)
    # Celery does this as well, but warns of some things before.
    configure_logs(settings)
    app.worker_main(
        [
            "--quiet",
            "worker",
            f"--hostname={settings.node}",
            f"--queues={','.join(QUEUES)}",
            f"--loglevel={settings.log_level}",
            "--without-gossip",
            "--without-mingle",
        ]
    )


if __name__ == "__main__":
    main()
