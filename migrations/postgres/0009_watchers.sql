-- Which users have subscribed to the presence of a proxied address, so that a component that starts again can tell them of
-- changes. `contact` is the user behind the address; times are microseconds since 1970-01-01T00:00:00Z.

CREATE TABLE watchers (
    component TEXT NOT NULL,
    watcher   TEXT NOT NULL,
    contact   TEXT NOT NULL,
    seen      BIGINT NOT NULL,
    PRIMARY KEY (component, watcher, contact)
);

CREATE INDEX watchers_watcher ON watchers (watcher);
CREATE INDEX watchers_contact ON watchers (contact);
