"""``python -m skerry_hub.migrations "what changed"``: write the next step from the difference to the tables."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from alembic import command

from skerry_hub.db import Database
from skerry_hub.migrations import config

VERSIONS = Path(__file__).parent / "versions"


def main() -> None:
    message = " ".join(sys.argv[1:]).strip() or "Change"
    number = 1 + sum(1 for _ in VERSIONS.glob("[0-9]*.py"))
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/hub.db")
        database.migrate()
        with database.engine.begin() as connection:
            command.revision(config(connection), message, autogenerate=True, rev_id=f"{number:04d}")
        database.close()
    for path in VERSIONS.glob("*.py"):
        text = path.read_text()
        # SQLModel renders its own string type; plain SQLAlchemy reads the same and needs no import.
        path.write_text(re.sub(r"sqlmodel\.sql\.sqltypes\.AutoString\((.*?)\)", r"sa.String(\1)", text))


if __name__ == "__main__":
    main()
