"""Two users on nbxmpp send each other bytes through the proxy (XEP-0065): each is requester once and target once.

The stanzas are nbxmpp's, the SOCKS5 connections those of GLib, which Gajim uses.
"""

import hashlib
import os
import threading

from gi.repository import Gio, GLib
from nbxmpp.namespaces import Namespace
from nbxmpp.protocol import Iq, NodeProcessed
from nbxmpp.simplexml import Node
from nbxmpp.structs import StanzaHandler

from nbxmpp_peer import fail, login, loop, report, run, settings

clients = {}
PIECE = 64 * 1024


def aside(work, then=lambda _: None):
    """Runs `work` in a thread, and `then` with its result in the main loop."""

    def both():
        try:
            GLib.idle_add(then, work())
        except Exception as error:
            fail(error)

    threading.Thread(target=both, daemon=True).start()


def socks5(host, port, sid, requester, target):
    """A connection to the proxy for this bytestream."""
    dst_addr = hashlib.sha1(f"{sid}{requester}{target}".encode()).hexdigest()
    plain = Gio.SocketClient().connect(Gio.NetworkAddress.new(host, port), None)
    ip = Gio.InetAddress.new_from_string(host)
    address = Gio.ProxyAddress.new(ip, port, "socks5", dst_addr, 0, None, None)
    proxy = Gio.Proxy.get_default_for_protocol("socks5")
    # GObject's own `connect`, of signals, hides the interface's.
    return Gio.Proxy.connect(proxy, plain, address, None)


def query(kind, to, sid=None, children=()):
    iq = Iq(kind, to=to)
    iq.addChild("query", {"sid": sid} if sid else {}, children, namespace=Namespace.BYTESTREAM)
    return iq


def result(stanza):
    if stanza.getType() != "result":
        raise RuntimeError(f"an error: {stanza}")
    return stanza.getTag("query", namespace=Namespace.BYTESTREAM)


def guarded(step):
    def run_step(*words):
        try:
            step(*words)
        except NodeProcessed:
            raise
        except Exception as error:
            fail(error)

    return run_step


class Requester:
    def __init__(self, name, peer, done):
        self.client, self.target, self.done = clients[name], str(clients[peer].get_bound_jid()), done
        self.me, self.sid, self.what = str(self.client.get_bound_jid()), os.urandom(16).hex(), f"{name} to {peer}"
        self.client.send_stanza(query("get", settings["component"]), callback=guarded(self.found))

    def found(self, _client, stanza):
        self.host = result(stanza).getTag("streamhost").getAttrs()
        offer = query("set", self.target, self.sid, [Node("streamhost", attrs=self.host)])
        self.client.send_stanza(offer, callback=guarded(self.used))

    def used(self, _client, stanza):
        used = result(stanza).getTag("streamhost-used").getAttr("jid")
        assert used == settings["component"], used
        host, port = self.host["host"], int(self.host["port"])
        aside(lambda: socks5(host, port, self.sid, self.me, self.target), self.connected)

    def connected(self, stream):
        self.stream = stream
        activate = query("set", settings["component"], self.sid, [Node("activate", payload=[self.target])])
        self.client.send_stanza(activate, callback=guarded(self.activated))

    def activated(self, _client, stanza):
        assert stanza.getType() == "result", stanza
        aside(self.send)

    def send(self):
        sent, left = hashlib.sha256(), settings["bytes"]
        while left:
            piece = os.urandom(min(PIECE, left))
            self.stream.get_output_stream().write_all(piece, None)
            sent.update(piece)
            left -= len(piece)
        # Before the target can have seen the end.
        report.setdefault(self.what, {})["sent"] = sent.hexdigest()
        self.stream.close(None)


class Target:
    def __init__(self, name, peer, done):
        self.client, self.what, self.done = clients[name], f"{peer} to {name}", done
        self.handler = StanzaHandler(
            name="iq", callback=guarded(self.offered), typ="set", ns=Namespace.BYTESTREAM, priority=5)  # fmt: skip
        self.client.register_handler(self.handler)

    def offered(self, _client, stanza, _properties):
        offer = stanza.getTag("query", namespace=Namespace.BYTESTREAM)
        host = offer.getTag("streamhost").getAttrs()
        requester, me, sid = str(stanza.getFrom()), str(self.client.get_bound_jid()), offer.getAttr("sid")

        def connected(stream):
            used = query("result", requester, sid, [Node("streamhost-used", attrs={"jid": host["jid"]})])
            used.setID(stanza.getID())
            self.client.send_stanza(used)
            aside(lambda: self.receive(stream), self.received)

        aside(lambda: socks5(host["host"], int(host["port"]), sid, requester, me), connected)
        raise NodeProcessed

    def receive(self, stream):
        received, count = hashlib.sha256(), 0
        while piece := stream.get_input_stream().read_bytes(PIECE, None).get_data():
            received.update(piece)
            count += len(piece)
        return {"received": received.hexdigest(), "bytes": count}

    def received(self, what):
        report.setdefault(self.what, {}).update(what)
        self.client.unregister_handler(self.handler)
        self.done()


def transfer(requester, target, done):
    Target(target, requester, done)
    Requester(requester, target, done)


def connected(name, client):
    clients[name] = client
    if len(clients) == 2:
        transfer("alice", "bob", lambda: transfer("bob", "alice", loop.quit))


for user in ("alice", "bob"):
    login(user, "gajim", lambda client, user=user: connected(user, client))
run(90)
