"""The log: structlog on stderr, for people (console) or for machines (JSON lines).

Loggers of libraries go the same way. botocore and aiobotocore log request bodies at DEBUG, which hold key material, so
theirs never go below INFO. gRPC logs metadata that is not UTF-8, which may hold a token, so that line is dropped, and
a traceback for each answer that it could not send because the caller had left, which is no error of anybody's.
Tracebacks show no local variables, which structlog would print by default: keys are among them.
"""

import logging
import sys
from typing import TextIO

import structlog
import structlog.tracebacks

_SAID_BY_US = ("aiobotocore.credentials", "azure", "botocore.credentials", "botocore.utils", "botocore.tokens")
"""Each failed renewal of credentials is a traceback there; aws/credentials.py logs it once. "azure" is a line for each
header of each request, and for each credential that is not there."""
_NEVER_DEBUG = ("aioboto3", "aiobotocore", "aiocache", "boto3", "botocore", "aiosqlite", "urllib3")


_DROPPED_OF_GRPC = ("Invalid encoding on", "ExecuteBatchError raised in core by servicer method")


def _is_wanted(record: logging.LogRecord) -> bool:
    return not (record.name.startswith("grpc") and str(record.msg).startswith(_DROPPED_OF_GRPC))


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Set up logging for the process. `form` is "console" or "json"; `level` a name such as "info"."""
    stream = stream or sys.stderr
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.types.Processor] = (
        [
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
        if form == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        ]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler.addFilter(_is_wanted)
    root = logging.getLogger()
    root.handlers = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Log from this level on, but for the loggers of libraries that would say too much."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _NEVER_DEBUG:
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
    for name in _SAID_BY_US:
        logging.getLogger(name).setLevel(logging.ERROR)
