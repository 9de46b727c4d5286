"""Alembic's entry point; service.kit.migrate hands it the Database."""

from alembic import context

from service.kit.db import Database
from service.tables import declared, metadata

database: Database = context.config.attributes["database"]

with database.write(patient=True) as connection:
    if database.dialect == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7026365410)")  # one migration at a time
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=database.dialect == "sqlite",
        compare_type=True,
        include_name=declared,
        transactional_ddl=True,
    )
    context.run_migrations()
