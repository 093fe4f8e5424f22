"""The database that the store is in. Another one is another module with these names; this file says which it is."""

from lockstep.server.store.sqlite import (
    ERRORS,
    Statement,
    Transaction,
    committed_before,
    error_of,
    how_to_replace,
    insert_or_update,
    is_of_the_store,
    lost_pages,
    reading_engine,
    says_disk_full,
    to_json,
    writing_engine,
)

__all__ = [
    "ERRORS",
    "Statement",
    "Transaction",
    "committed_before",
    "error_of",
    "how_to_replace",
    "insert_or_update",
    "is_of_the_store",
    "lost_pages",
    "reading_engine",
    "says_disk_full",
    "to_json",
    "writing_engine",
]
