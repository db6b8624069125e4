-- What a component that starts again needs to go on with a session whose users' programs can: which user began it ("initiator"
-- or "responder"), the name of its content, and the namespace of the Jingle transport of this leg. All three are NULL in other
-- sessions.

ALTER TABLE open_sessions ADD COLUMN role TEXT;
ALTER TABLE open_sessions ADD COLUMN content TEXT;
ALTER TABLE open_sessions ADD COLUMN transport TEXT;
