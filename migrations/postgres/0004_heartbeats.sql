-- When each component has last found that the database takes changes, and room for the attempt: empty between attempts.

CREATE TABLE heartbeats (
    component TEXT PRIMARY KEY,
    at        BIGINT NOT NULL,
    room      BYTEA NOT NULL
);

-- Compressed, the room for an attempt would be none.
ALTER TABLE heartbeats ALTER COLUMN room SET STORAGE EXTERNAL;
