-- Keys, their prints and the audit log. Times are microseconds since 1970-01-01T00:00:00Z.
-- JIDs stand in `parties` only: everything else points there, so that a user can be forgotten
-- without a change to the audit log.

CREATE TABLE parties (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    jid    TEXT UNIQUE,
    erased TEXT,
    CONSTRAINT parties_known_or_erased CHECK ((jid IS NULL) <> (erased IS NULL))
);

CREATE TABLE keys (
    id          TEXT PRIMARY KEY NOT NULL,
    owner       BIGINT NOT NULL REFERENCES parties (id),
    method      TEXT NOT NULL CHECK (method IN ('x509', 'openpgp')),
    label       TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('active', 'superseded', 'revoked')),
    assurance   TEXT NOT NULL CHECK (assurance IN ('asserted', 'proven', 'attested')),
    source      TEXT NOT NULL CHECK (source IN ('self', 'pep', 'admin', 'import')),
    created     BIGINT NOT NULL,
    changed     BIGINT NOT NULL,
    expires     BIGINT,
    replaced_by TEXT REFERENCES keys (id) DEFERRABLE INITIALLY DEFERRED,
    reason      TEXT
);

CREATE INDEX keys_owner ON keys (owner, created);

CREATE TABLE prints (
    key_id   TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    hash     TEXT NOT NULL CHECK (hash IN ('sha-1', 'sha-256', 'spki-sha-256')),
    bytes    BYTEA NOT NULL,
    PRIMARY KEY (key_id, position)
);

CREATE INDEX prints_bytes ON prints (bytes);

CREATE TABLE materials (
    key_id TEXT PRIMARY KEY NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    bytes  BYTEA NOT NULL
);

-- Who may see a user's keys, if the user has said so; `allowed` are those named for 'listed'.
CREATE TABLE settings (
    owner      BIGINT PRIMARY KEY NOT NULL REFERENCES parties (id),
    visibility TEXT NOT NULL CHECK (visibility IN ('everyone', 'local', 'listed', 'nobody'))
);

CREATE TABLE allowed (
    owner BIGINT NOT NULL REFERENCES settings (owner) ON DELETE CASCADE,
    jid   TEXT NOT NULL,
    PRIMARY KEY (owner, jid)
);

-- The certificates and private keys of the components on this database, by their address: of nobody else.
CREATE TABLE identities (
    component   TEXT PRIMARY KEY NOT NULL,
    certificate BYTEA NOT NULL,
    private_key BYTEA NOT NULL
);

-- `key_id` is no foreign key: a row here outlives what it tells of. It is absent where no key is meant.
CREATE TABLE audit (
    seq        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         BIGINT NOT NULL,
    event      TEXT NOT NULL,
    key_id     TEXT,
    owner      BIGINT NOT NULL REFERENCES parties (id),
    actor_kind TEXT NOT NULL CHECK (actor_kind IN ('user', 'admin', 'offline')),
    actor      BIGINT REFERENCES parties (id),
    other      BIGINT REFERENCES parties (id),
    other_key  TEXT,
    CONSTRAINT audit_actor_is_named CHECK ((actor_kind = 'offline') = (actor IS NULL))
);

CREATE INDEX audit_owner ON audit (owner, seq);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END
$$;

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();

CREATE TRIGGER audit_is_never_emptied BEFORE TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

CREATE FUNCTION revoked_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a revoked key stays as it is';
END
$$;

CREATE TRIGGER revoked_is_final BEFORE UPDATE ON keys
FOR EACH ROW WHEN (OLD.state = 'revoked') EXECUTE FUNCTION revoked_stays();
