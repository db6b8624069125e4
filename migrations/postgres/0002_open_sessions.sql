-- The sessions that are open, one row for each user in them, so that a component that starts again after a crash can
-- tell those who wait. A row is here for as long as its session; times are microseconds since 1970-01-01T00:00:00Z.

CREATE TABLE open_sessions (
    component TEXT NOT NULL,
    session   TEXT NOT NULL,
    sid       TEXT NOT NULL,
    user_jid  TEXT NOT NULL,
    mask      TEXT NOT NULL,
    namespace TEXT NOT NULL,
    began     BIGINT NOT NULL,
    PRIMARY KEY (component, session, sid)
);
