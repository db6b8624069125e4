"""End-to-end TLS over Jingle, without an XMPP library.

`session.Session` is the protocol, without input, output or a clock. `fingerpost_slixmpp` and the plugin for Gajim
carry out what it wants, each with its own XMPP library.
"""
