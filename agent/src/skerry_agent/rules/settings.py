"""All settings of the brain's rules in one struct; each part stands beside the rule that reads it."""

from __future__ import annotations

import msgspec

from skerry_agent.rules.download import DownloadSettings
from skerry_agent.rules.health import HealthSettings
from skerry_agent.rules.lifecycle import LifecycleSettings


class BrainSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults suit a device on a thin link; seconds are monotonic, megabytes are 10**6 bytes."""

    lifecycle: LifecycleSettings = LifecycleSettings()
    download: DownloadSettings = DownloadSettings()
    health: HealthSettings = HealthSettings()
    objects_at_once: int = 4  # objects that are downloaded side by side
    max_index_bytes: int = 4 * 1024 * 1024  # a larger index is refused before it is fetched
    spare_disk_mb: int = 32  # stays free for the spool, the state and the system
    report_progress_s: float = 5.0  # between reports that differ in progress only
    save_retry_s: float = 1.0  # the pause after a failed save; it doubles each time
    save_retry_max_s: float = 60.0  # the longest pause after a failed save
