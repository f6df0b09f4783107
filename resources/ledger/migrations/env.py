"""Alembic runs this: the migrations join the transaction that the caller has begun.

With `transactional_ddl` a migration on SQLite is made whole or not at all, as on Postgres.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
