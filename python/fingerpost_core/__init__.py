"""End-to-end TLS over Jingle, without an XMPP library.

`session.Session` is the protocol, without input, output or a clock. `fingerpost_slixmpp` carries out what it wants
with slixmpp.
"""
