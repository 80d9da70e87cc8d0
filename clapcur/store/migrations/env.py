"""Run the migrations on the connection of `clapcur.store.database`, inside its transaction and under its lock."""

from alembic import context

from clapcur.store.database import TABLES, VERSION

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=TABLES,
    version_table=VERSION.name,
    render_as_batch=True,  # SQLite cannot alter a column: the table is copied
)
with context.begin_transaction():
    context.run_migrations()
