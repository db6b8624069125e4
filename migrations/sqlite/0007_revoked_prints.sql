-- Prints that were revoked for an address whose keys have been deleted since: they stay revoked for it. Neither the address
-- nor the print can be read here, both are hashed with a salt. There are several salts if rows came from elsewhere.

CREATE TABLE salts (
    salt BLOB PRIMARY KEY NOT NULL
) STRICT;

INSERT INTO salts (salt) VALUES (randomblob(16));

CREATE TABLE revoked_prints (
    owner  BLOB NOT NULL,
    print  BLOB NOT NULL,
    method TEXT NOT NULL CHECK (method IN ('x509', 'openpgp')),
    at     INTEGER NOT NULL,
    PRIMARY KEY (owner, print)
) STRICT;
