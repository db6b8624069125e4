-- When each component has last found that the database takes changes, and room for the attempt: empty between attempts.

CREATE TABLE heartbeats (
    component TEXT PRIMARY KEY NOT NULL,
    at        INTEGER NOT NULL,
    room      BLOB NOT NULL
) STRICT;
