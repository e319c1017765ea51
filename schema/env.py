"""Alembic's environment: run by `autovibe db upgrade`, which passes an open connection; there is no ini file."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
