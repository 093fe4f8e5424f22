"""The migrations that run when a store is opened."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from lockstep.server.store.errors import StoreError


def migrate(engine: Engine, target: str = "head") -> None:
    """Bring the tables to a revision; to the newest when none is named.

    Raises:
        StoreError: a newer Lockstep has written this store.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        known = {script.revision for script in scripts.walk_revisions()}
        if revision is not None and revision not in known:
            raise StoreError(
                f"{engine.url.database} was written by a newer Lockstep (revision {revision}); "
                "start that version, or choose another --data-dir"
            )
        if revision != scripts.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, target)
