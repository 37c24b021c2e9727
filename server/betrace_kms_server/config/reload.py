"""Settings that are read again while the daemon runs.

All sources are read and checked as at start, so that a file with a mistake in it changes nothing. A setting that cannot
be changed in a running daemon is named in the log, with what it waits for.
"""

from collections.abc import Callable, Mapping

import structlog

from betrace_kms_server.config.settings import Settings
from betrace_kms_server.config.sources import described

log = structlog.get_logger()

Reread = Callable[[], tuple[Settings, Mapping[str, str]]]
"""Returns what the sources say now, and where each value comes from. Raises StartRefused."""


class SettingsReload:
    """Applies what changed in the sources. `appliers` has what applies each setting that needs no restart, by name."""

    def __init__(
        self,
        settings: Settings,
        origins: Mapping[str, str],
        reread: Reread,
        appliers: Mapping[str, Callable[[Settings], None]],
    ) -> None:
        self._in_force = {name: value for name, value, _ in described(settings, origins)}
        self._reread = reread
        self._appliers = appliers

    def reload(self) -> None:
        """Read the sources, and apply or report what is not in force. Raises StartRefused, and then nothing changed."""
        settings, origins = self._reread()
        waiting = []
        for name, value, origin in described(settings, origins):
            if value == self._in_force[name]:
                continue
            if (apply := self._appliers.get(name)) is None:
                waiting.append(name)
                continue
            apply(settings)
            self._in_force[name] = value
            log.info(f"{name} = {value}", source=origin)  # noqa: G004  # as at start
        if waiting:
            log.warning(f"Changed settings that need a restart: {', '.join(waiting)}")  # noqa: G004
