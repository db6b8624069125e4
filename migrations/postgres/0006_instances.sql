-- The Fingerposts that serve the same component together, each on its own node of a cluster. A row is as old as the last
-- sign of life of its instance.

CREATE TABLE instances (
    component TEXT NOT NULL,
    id        TEXT NOT NULL,
    leads     BOOLEAN NOT NULL,
    linked    BOOLEAN NOT NULL,
    advertise TEXT NOT NULL,
    seen      TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (component, id)
);

-- Stanzas on their way to another instance that are too long for a notification. A row is removed when it is fetched; it
-- is written to no log and lost with a crash, as the stanza would be.

CREATE UNLOGGED TABLE handovers (
    id       BIGSERIAL PRIMARY KEY,
    instance TEXT NOT NULL,
    stanza   TEXT NOT NULL,
    at       TIMESTAMPTZ NOT NULL
);
