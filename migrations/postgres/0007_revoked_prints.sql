-- Prints that were revoked for an address whose keys have been deleted since: they stay revoked for it. Neither the address
-- nor the print can be read here, both are hashed with a salt. There are several salts if rows came from elsewhere.

CREATE TABLE salts (
    salt BYTEA PRIMARY KEY NOT NULL
);

INSERT INTO salts (salt) VALUES (decode(replace(gen_random_uuid()::TEXT, '-', ''), 'hex'));

CREATE TABLE revoked_prints (
    owner  BYTEA NOT NULL,
    print  BYTEA NOT NULL,
    method TEXT NOT NULL CHECK (method IN ('x509', 'openpgp')),
    at     BIGINT NOT NULL,
    PRIMARY KEY (owner, print)
);
