"""What all tables share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from sqlalchemy import DateTime, ForeignKey, LargeBinary, MetaData, Numeric, TypeDecorator, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.orm import DeclarativeBase, mapped_column

from autovibe import manifests

#: Money and amounts: `Decimal` in Python, exact in Postgres.
MONEY = Numeric(24, 9)
TIMESTAMP = DateTime(timezone=True)

Key = Annotated[UUID, mapped_column(PG_UUID, primary_key=True, default=uuid4, server_default=text("gen_random_uuid()"))]
CreatedAt = Annotated[datetime, mapped_column(TIMESTAMP, server_default=text("now()"))]
Json = Annotated[dict[str, Any], mapped_column(JSONB, default=dict, server_default=text("'{}'"))]


def reference(column: str, *, deferred: bool = False, **options: Any) -> Any:
    """A column that refers to `table.column`. A deferred one closes a cycle and is checked at commit."""
    timing = {"deferrable": True, "initially": "DEFERRED", "use_alter": True} if deferred else {}
    return mapped_column(PG_UUID, ForeignKey(column, **timing), **options)


class Manifest(TypeDecorator[dict[str, Any]]):
    """A manifest (`autovibe.manifests`), packed; {} is NULL. To change it, assign it."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Any) -> bytes | None:
        return manifests.pack(value)

    def process_result_value(self, value: bytes | None, dialect: Any) -> dict[str, Any]:
        return manifests.unpack(None if value is None else bytes(value))


class Base(DeclarativeBase):
    """All tables. The migrations in `schema/` make them; a test compares the two."""

    metadata = MetaData()
    type_annotation_map = {datetime: TIMESTAMP, UUID: PG_UUID}

    def __repr__(self) -> str:
        keys = ", ".join(str(getattr(self, column.key)) for column in self.__mapper__.primary_key)
        return f"<{type(self).__name__} {keys}>"
