"""The tables of the key store, in a schema of their own, and how `betrace-kms keystore init` makes them.

The daemon makes and changes no table: it needs none of the rights for that, and two versions of it may run on one
database. Text is compared byte for byte (collation "C").
"""

from psycopg import AsyncConnection, sql

SCHEMA = "betrace_kms"
VERSION = 1
"""Columns and tables that an earlier daemon can do without are added without a new number."""
_ADVISORY_LOCK = 0x42544B53  # "BTKS"
_TABLES = """
CREATE SCHEMA IF NOT EXISTS betrace_kms;
CREATE TABLE IF NOT EXISTS betrace_kms.origin (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    version          INTEGER NOT NULL,
    sealing_key_type TEXT    NOT NULL
);
CREATE TABLE IF NOT EXISTS betrace_kms.signing_keys (
    tenant_id      TEXT COLLATE "C" NOT NULL,
    key_id         TEXT COLLATE "C" NOT NULL,
    provider       TEXT   NOT NULL,
    master_key_arn TEXT   NOT NULL,
    wrapped_seed   BYTEA  NOT NULL,
    public_key     BYTEA  NOT NULL,
    status         TEXT   NOT NULL CHECK (status IN ('active', 'rotated', 'revoked')),
    create_time_ms BIGINT NOT NULL,
    rotate_time_ms BIGINT,
    revoke_time_ms BIGINT,
    checksum       BYTEA  NOT NULL,
    state_checksum BYTEA  NOT NULL,
    PRIMARY KEY (tenant_id, key_id)
);
CREATE UNIQUE INDEX IF NOT EXISTS one_active_key ON betrace_kms.signing_keys (tenant_id) WHERE status = 'active';
CREATE INDEX IF NOT EXISTS age_of_active_keys ON betrace_kms.signing_keys (create_time_ms) WHERE status = 'active';
CREATE TABLE IF NOT EXISTS betrace_kms.tenants (
    tenant_id  TEXT COLLATE "C" PRIMARY KEY,
    generation BIGINT  NOT NULL DEFAULT 0,
    had_key    BOOLEAN NOT NULL DEFAULT FALSE,
    shredding  TEXT
);
CREATE INDEX IF NOT EXISTS shreddings ON betrace_kms.tenants (tenant_id) WHERE shredding IS NOT NULL;
CREATE TABLE IF NOT EXISTS betrace_kms.emergency_stop (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    reason  TEXT,
    time_ms BIGINT
);
CREATE TABLE IF NOT EXISTS betrace_kms.branch_keys (
    branch_key_id TEXT COLLATE "C" NOT NULL,
    type          TEXT COLLATE "C" NOT NULL,
    create_time   TEXT COLLATE "C" NOT NULL,
    kms_arn       TEXT  NOT NULL,
    attributes    TEXT  NOT NULL,
    enc           BYTEA NOT NULL,
    PRIMARY KEY (branch_key_id, type)
);
"""
_ORIGIN = "INSERT INTO betrace_kms.origin VALUES (1, %s, 'sealing') ON CONFLICT DO NOTHING"
_GRANTS = (
    "GRANT USAGE ON SCHEMA betrace_kms TO {role}",
    "GRANT SELECT ON betrace_kms.origin TO {role}",
    "GRANT SELECT, INSERT, UPDATE ON betrace_kms.signing_keys, betrace_kms.tenants, betrace_kms.emergency_stop,"
    " betrace_kms.branch_keys TO {role}",
)
_GRANT_DELETION = "GRANT DELETE ON betrace_kms.branch_keys TO {role}"


async def make_tables(connection: AsyncConnection, role: str | None, *, may_shred: bool) -> bool:
    """Make what is missing, in one transaction, and let a role use it. Returns whether the store is new.

    Two that do it at once do it one after the other. `may_shred` lets the role delete branch keys. Raises
    psycopg.Error.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
        await connection.execute(_TABLES)
        made = await connection.execute(_ORIGIN, (VERSION,))
        for grant in (*(_GRANTS if role else ()), *((_GRANT_DELETION,) if role and may_shred else ())):
            await connection.execute(sql.SQL(grant).format(role=sql.Identifier(role or "")))
        return made.rowcount == 1
