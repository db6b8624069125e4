-- Keys, their prints and the audit log. Times are microseconds since 1970-01-01T00:00:00Z.
-- JIDs stand in `parties` only: everything else points there, so that a user can be forgotten
-- without a change to the audit log.

CREATE TABLE parties (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    jid    TEXT UNIQUE,
    erased TEXT,
    CONSTRAINT parties_known_or_erased CHECK ((jid IS NULL) <> (erased IS NULL))
) STRICT;

CREATE TABLE keys (
    id          TEXT PRIMARY KEY NOT NULL,
    owner       INTEGER NOT NULL REFERENCES parties (id),
    method      TEXT NOT NULL CHECK (method IN ('x509', 'openpgp')),
    label       TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('active', 'superseded', 'revoked')),
    assurance   TEXT NOT NULL CHECK (assurance IN ('asserted', 'proven', 'attested')),
    source      TEXT NOT NULL CHECK (source IN ('self', 'pep', 'admin', 'import')),
    created     INTEGER NOT NULL,
    changed     INTEGER NOT NULL,
    expires     INTEGER,
    replaced_by TEXT REFERENCES keys (id) DEFERRABLE INITIALLY DEFERRED,
    reason      TEXT
) STRICT;

CREATE INDEX keys_owner ON keys (owner, created);

CREATE TABLE prints (
    key_id   TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    hash     TEXT NOT NULL CHECK (hash IN ('sha-1', 'sha-256', 'spki-sha-256')),
    bytes    BLOB NOT NULL,
    PRIMARY KEY (key_id, position)
) STRICT;

CREATE INDEX prints_bytes ON prints (bytes);

CREATE TABLE materials (
    key_id TEXT PRIMARY KEY NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    bytes  BLOB NOT NULL
) STRICT;

-- Who may see a user's keys, if the user has said so; `allowed` are those named for 'listed'.
CREATE TABLE settings (
    owner      INTEGER PRIMARY KEY NOT NULL REFERENCES parties (id),
    visibility TEXT NOT NULL CHECK (visibility IN ('everyone', 'local', 'listed', 'nobody'))
) STRICT;

CREATE TABLE allowed (
    owner INTEGER NOT NULL REFERENCES settings (owner) ON DELETE CASCADE,
    jid   TEXT NOT NULL,
    PRIMARY KEY (owner, jid)
) STRICT;

-- The certificates and private keys of the components on this database, by their address: of nobody else.
CREATE TABLE identities (
    component   TEXT PRIMARY KEY NOT NULL,
    certificate BLOB NOT NULL,
    private_key BLOB NOT NULL
) STRICT;

-- `key_id` is no foreign key: a row here outlives what it tells of. It is absent where no key is meant.
CREATE TABLE audit (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    event      TEXT NOT NULL,
    key_id     TEXT,
    owner      INTEGER NOT NULL REFERENCES parties (id),
    actor_kind TEXT NOT NULL CHECK (actor_kind IN ('user', 'admin', 'offline')),
    actor      INTEGER REFERENCES parties (id),
    other      INTEGER REFERENCES parties (id),
    other_key  TEXT,
    CONSTRAINT audit_actor_is_named CHECK ((actor_kind = 'offline') = (actor IS NULL))
) STRICT;

CREATE INDEX audit_owner ON audit (owner, seq);

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

CREATE TRIGGER audit_is_never_shortened BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- INSERT OR REPLACE would remove a row without firing the trigger above.
CREATE TRIGGER audit_is_never_replaced BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

CREATE TRIGGER revoked_is_final BEFORE UPDATE ON keys
WHEN OLD.state = 'revoked'
BEGIN
    SELECT RAISE(ABORT, 'a revoked key stays as it is');
END;
