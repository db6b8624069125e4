"""A component that shows collected pages: `pN@replay.example.test` has one command, and its answer is page N.

The component's own pages come to the clients unchanged, and each can be reached alone.
"""

import slixmpp
from common import COMMANDS, DATA, REPLAY
from slixmpp.xmlstream import ET
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

DISCO = "http://jabber.org/protocol/disco#"


class Replay(slixmpp.ComponentXMPP):
    def __init__(self, address, secret, pages):
        super().__init__(REPLAY, secret, *address)
        self.pages = pages
        self.register_handler(Callback("all", MatchXPath("{jabber:component:accept}iq"), self.answer))

    def answer(self, iq):
        request = next(iter(iq.xml), None)
        if iq.xml.get("type") not in ("get", "set") or request is None:
            return
        reply = ET.Element("iq", {"type": "result", "id": iq.xml.get("id"), "to": iq.xml.get("from"), "from": iq.xml.get("to")})
        number = iq.xml.get("to").split("@")[0].removeprefix("p")
        node = "page-" + number
        if request.tag == "{%s}command" % COMMANDS and request.get("action") == "cancel":
            attributes = {"node": node, "sessionid": "1", "status": "canceled"}
            ET.SubElement(reply, "{%s}command" % COMMANDS, attributes)
        elif request.tag == "{%s}command" % COMMANDS:
            command = ET.fromstring(self.pages[int(number)]["xml"])
            command.set("node", node)
            reply.append(command)
        elif request.tag == "{%sitems}query" % DISCO:
            query = ET.SubElement(reply, request.tag, {"node": COMMANDS})
            ET.SubElement(query, "{%sitems}item" % DISCO, {"jid": iq.xml.get("to"), "node": node, "name": node})
        elif request.tag == "{%sinfo}query" % DISCO:
            query = ET.SubElement(reply, request.tag)
            ET.SubElement(query, "{%sinfo}identity" % DISCO, {"category": "component", "type": "generic"})
            for feature in (COMMANDS, DATA[1:-1]):
                ET.SubElement(query, "{%sinfo}feature" % DISCO, {"var": feature})
        self.send_raw(ET.tostring(reply, encoding="unicode"))
