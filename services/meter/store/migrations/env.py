"""What Alembic runs for every command: with the connection that it is given, or else that of the mesh's settings.

In: `config.attributes["connection"]`, from `services/meter/store/upgrades.py`. Out: the revisions that are lacking, in
the transaction of that connection.
"""

from alembic import context
from sqlalchemy import Connection, create_engine

from services.mesh.settings import load_settings
from services.meter.store.tables import metadata


def _run(connection: Connection) -> None:
    # SQLite changes a column by copying its table.
    batch = connection.dialect.name == "sqlite"
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=batch)
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with create_engine(load_settings().database_url).begin() as own:
        _run(own)
