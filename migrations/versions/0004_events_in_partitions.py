"""Event ids in a table of their own; on PostgreSQL events in partitions by their sequence (docs/decisions/0019)."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LOSES = ()

WIDTH = 1_000_000  # events in each of the first partitions; later ones follow the traffic
COLUMNS = "seq, event_id, user_id, item_id, event_type, occurred_at, received_at, value, recommendation_id, position, properties"
HISTORY = "ix_events_user_id_occurred_at_seq_item_id_event_type"
HISTORY_COLUMNS = ["user_id", "occurred_at", "seq", "item_id", "event_type"]
RECOMMENDATION = "ix_events_recommendation_id"
GIVEN = "recommendation_id IS NOT NULL"
HASH_COMMENT = "sha256 of the canonical body: same id, other body is a conflict"
ITEM_COMMENT = "not a foreign key: an event may come before its item"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _partition()
    else:
        _split_on_sqlite()


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _join_partitions()
    else:
        _join_on_sqlite()


def _partition() -> None:
    op.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
    op.execute("CREATE TABLE event_ids (event_id varchar(128) NOT NULL, body_hash bytea NOT NULL)")
    op.execute("INSERT INTO event_ids SELECT event_id, decode(body_hash, 'hex') FROM events")
    op.execute("ALTER TABLE event_ids ADD CONSTRAINT pk_event_ids PRIMARY KEY (event_id)")
    op.execute(f"COMMENT ON COLUMN event_ids.body_hash IS '{HASH_COMMENT}'")
    # The table as it is becomes the first partition: nothing is copied, however large it is.
    op.execute("ALTER TABLE events DROP CONSTRAINT uq_events_event_id, DROP COLUMN body_hash")
    op.execute("ALTER TABLE events RENAME TO events_p1")
    op.execute("ALTER TABLE events_p1 RENAME CONSTRAINT pk_events TO events_p1_pkey")
    op.execute(f"ALTER INDEX {HISTORY} RENAME TO events_p1_user_id_occurred_at_seq_item_id_event_type_idx")
    op.execute(f"ALTER INDEX {RECOMMENDATION} RENAME TO events_p1_recommendation_id_idx")
    op.execute("""
        CREATE TABLE events (
            seq bigint NOT NULL DEFAULT nextval('events_seq_seq'),
            event_id varchar(128) NOT NULL,
            user_id varchar(128) NOT NULL,
            item_id varchar(128) NOT NULL,
            event_type varchar(32) NOT NULL,
            occurred_at timestamptz NOT NULL,
            received_at timestamptz NOT NULL,
            value double precision,
            recommendation_id varchar(36),
            position integer,
            properties jsonb,
            CONSTRAINT pk_events PRIMARY KEY (seq)
        ) PARTITION BY RANGE (seq)
    """)
    op.execute(f"COMMENT ON COLUMN events.item_id IS '{ITEM_COMMENT}'")
    op.execute("ALTER SEQUENCE events_seq_seq OWNED BY events.seq")
    _history_indexes()
    last = op.get_bind().execute(sa.text("SELECT last_value FROM events_seq_seq")).scalar_one()
    edge = (last // WIDTH + 1) * WIDTH + 1
    op.execute(f"ALTER TABLE events ATTACH PARTITION events_p1 FOR VALUES FROM (MINVALUE) TO ({edge})")
    op.execute(f"CREATE TABLE events_p{edge} PARTITION OF events FOR VALUES FROM ({edge}) TO ({edge + WIDTH})")
    op.execute("CREATE TABLE events_default PARTITION OF events DEFAULT")
    op.execute("ANALYZE event_ids")


def _join_partitions() -> None:
    op.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
    op.execute(f"""
        CREATE TABLE events_joined AS
        SELECT {COLUMNS}, COALESCE(encode(body_hash, 'hex'), repeat('0', 64))::varchar(64) AS body_hash
        FROM events LEFT JOIN event_ids USING (event_id)
    """)
    op.execute("ALTER SEQUENCE events_seq_seq OWNED BY NONE")
    for name in (
        op.get_bind()
        .scalars(sa.text("SELECT relname FROM pg_class WHERE relname LIKE 'events\\_expired\\_%' AND relkind = 'r'"))
        .all()
    ):
        op.execute(f'DROP TABLE "{name}"')
    op.execute("DROP TABLE events")
    op.execute("DROP TABLE event_ids")
    op.execute("ALTER TABLE events_joined RENAME TO events")
    for name in ("seq", "event_id", "body_hash", "user_id", "item_id", "event_type", "occurred_at", "received_at"):
        op.execute(f"ALTER TABLE events ALTER COLUMN {name} SET NOT NULL")
    op.execute("ALTER TABLE events ALTER COLUMN seq SET DEFAULT nextval('events_seq_seq')")
    op.execute("ALTER SEQUENCE events_seq_seq OWNED BY events.seq")
    op.execute("ALTER TABLE events ADD CONSTRAINT pk_events PRIMARY KEY (seq)")
    op.execute("ALTER TABLE events ADD CONSTRAINT uq_events_event_id UNIQUE (event_id)")
    op.execute(f"COMMENT ON COLUMN events.body_hash IS '{HASH_COMMENT}'")
    op.execute(f"COMMENT ON COLUMN events.item_id IS '{ITEM_COMMENT}'")
    _history_indexes()


_SQLITE_EVENTS = """
    CREATE TABLE {name} (
        seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        event_id VARCHAR(128) NOT NULL,
        {body_hash}
        user_id VARCHAR(128) NOT NULL,
        item_id VARCHAR(128) NOT NULL,
        event_type VARCHAR(32) NOT NULL,
        occurred_at DATETIME NOT NULL,
        received_at DATETIME NOT NULL,
        value FLOAT,
        recommendation_id VARCHAR(36),
        position INTEGER,
        properties JSON
        {unique}
    )
"""


def _split_on_sqlite() -> None:
    op.execute(
        "CREATE TABLE event_ids (event_id VARCHAR(128) NOT NULL, body_hash BLOB NOT NULL, "
        "CONSTRAINT pk_event_ids PRIMARY KEY (event_id)) WITHOUT ROWID"
    )
    driver = op.get_bind().connection.driver_connection
    driver.create_function("adaptide_unhex", 1, bytes.fromhex, deterministic=True)
    op.execute("INSERT INTO event_ids SELECT event_id, adaptide_unhex(body_hash) FROM events ORDER BY event_id")
    op.execute(_SQLITE_EVENTS.format(name="events_new", body_hash="", unique=""))
    op.execute(f"INSERT INTO events_new ({COLUMNS}) SELECT {COLUMNS} FROM events ORDER BY seq")
    _take_the_place_of_events()


def _join_on_sqlite() -> None:
    op.execute(
        _SQLITE_EVENTS.format(
            name="events_new",
            body_hash="body_hash VARCHAR(64) NOT NULL,",
            unique=", CONSTRAINT uq_events_event_id UNIQUE (event_id)",
        )
    )
    op.execute(f"""
        INSERT INTO events_new ({COLUMNS}, body_hash)
        SELECT {COLUMNS}, (
            SELECT COALESCE(lower(hex(max(body_hash))), '{"0" * 64}') FROM event_ids AS own WHERE own.event_id = events.event_id
        )
        FROM events ORDER BY seq
    """)
    _take_the_place_of_events()
    op.execute("DROP TABLE event_ids")


def _take_the_place_of_events() -> None:
    # A deleted sequence number is never given again, so the counter moves too.
    op.execute("DELETE FROM sqlite_sequence WHERE name = 'events_new'")
    op.execute(
        "INSERT INTO sqlite_sequence (name, seq) SELECT 'events_new', seq FROM sqlite_sequence WHERE name = 'events'"
    )
    op.execute("DROP TABLE events")
    op.execute("ALTER TABLE events_new RENAME TO events")
    _history_indexes()


def _history_indexes() -> None:
    op.create_index(HISTORY, "events", HISTORY_COLUMNS)
    op.create_index(
        RECOMMENDATION,
        "events",
        ["recommendation_id"],
        postgresql_where=sa.text(GIVEN),
        sqlite_where=sa.text(GIVEN),
    )
