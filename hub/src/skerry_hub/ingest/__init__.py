"""The one write path for what devices send: offered to the engine, judged and turned into rows, written in batches."""

from skerry_hub.ingest.engine import Ingest, IngestSettings

__all__ = ["Ingest", "IngestSettings"]
