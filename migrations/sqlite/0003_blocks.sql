-- Whom an admin has blocked by command: a bare JID or a domain. It names no party: a block outlives the erasure of
-- what is held about the user.

CREATE TABLE blocks (
    jid    TEXT PRIMARY KEY NOT NULL,
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL
) STRICT;
