-- Which resources of users are reachable, so that a component that starts again knows whom to ask. A row is removed when
-- its resource goes away or does not answer; times are microseconds since 1970-01-01T00:00:00Z.

CREATE TABLE reachable (
    component TEXT NOT NULL,
    jid       TEXT NOT NULL,
    owner     TEXT NOT NULL,
    priority  SMALLINT NOT NULL,
    seen      BIGINT NOT NULL,
    PRIMARY KEY (component, jid)
);

CREATE INDEX reachable_owner ON reachable (owner);
