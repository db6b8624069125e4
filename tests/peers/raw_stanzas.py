"""Jingle stanzas of sessions over in-band bytestreams."""

ACCEPT = """<jingle xmlns='urn:xmpp:jingle:1' action='session-accept' responder='{responder}' sid='{sid}'>
  <content creator='initiator' name='{name}'>
    <description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'>
      <print>00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33</print></method></methods></description>
    <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{stream}' block-size='{size}'/>
  </content>
</jingle>"""


def initiate(initiator, sid, stream):
    return f"""<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' initiator='{initiator}' sid='{sid}'>
      <content creator='initiator' name='tls'>
        <description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'>
          <print>72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38</print>
        </method></methods></description>
        <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{stream}' block-size='4096'/>
      </content>
    </jingle>"""
