"""Structured logs: one event a line, for people or as JSON. An event names ids and codes, never a path or a person."""

from __future__ import annotations

import logging
import sys

import structlog

from worker.settings import WorkerSettings

#: Where Celery refuses a message that it cannot use, and repeats the whole of it in its log.
_REFUSING = frozenset({"on_decode_error", "on_invalid_task", "on_unknown_message", "on_unknown_task"})


def _without_the_message(record: logging.LogRecord) -> bool:
    """Keep of a refused message only that there was one: a stranger may have put a name into it."""
    if record.funcName in _REFUSING:
        record.msg, record.args, record.exc_info = "message_refused", (), None
    return True


def configure_logs(settings: WorkerSettings) -> None:
    """Send every log of this process, Celery's included, to standard error in the format of the settings."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    logging.captureWarnings(capture=True)
    for exporter in ("onnx_ir", "onnxscript"):  # what PyTorch exports with tells each step
        logging.getLogger(exporter).setLevel(logging.WARNING)
    # billiard's, which hands nothing on to the root; of what it says only faults are news.
    processes = logging.getLogger("multiprocessing")
    processes.handlers[:] = [handler]
    processes.setLevel(logging.WARNING)
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_without_the_message)
    # Our own events say the same of each job, with its outcome.
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
