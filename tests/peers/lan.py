"""The local network without xtls: zeroconf for the names, Python's ssl and expat for the stream of XEP-0174.

Settings: address (ours), role, directory and
  "browse": reports what is announced, until the name `gone_after` is gone again if that is set;
  "call": calls `name`: plain stream, STARTTLS, TLS as client, then a message `say` and the answer to it; `plain`: sends a
          message instead of STARTTLS, `inject`: sends a stanza in clear behind STARTTLS;
  "serve": announces `name` and waits: TLS as server, with the certificate made in `keys`; `starttls` false: offers none;
           `dead`: announces these addresses too, which nobody has;
  "forge": announces, once and under `name`, what is not true of it: another "place", other "properties", another "address"
           of its host, or its "goodbye";
  "links": asks on each of `interfaces` who is there, and reports the addresses that come back on it.
"""

import asyncio
import socket
import ssl
import struct
from pathlib import Path

from elements import Elements
from peer import main
from tls_over_ibb import certificate, fingerprint
from zeroconf import (
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSService,
    DNSText,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)

SERVICE = "_presence._tcp.local."
GROUP, GROUP_V6, PORT = "224.0.0.251", "ff02::fb", 5353
# Numbers of RFC 1035, RFC 2782 and RFC 6762: types; the class of the internet, alone and with "forget the others".
A, PTR, TXT, AAAA, SRV = 1, 12, 16, 28, 33
IN, ALONE = 1, 0x8001
RESPONSE = 0x8400
STREAMS = "http://etherx.jabber.org/streams"
TLS = "urn:ietf:params:xml:ns:xmpp-tls"


def header(own, peer):
    return (
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' "
        f"xmlns:stream='{STREAMS}' from='{own}' to='{peer}' version='1.0'>"
    )


class Stream(Elements):
    """One stream on a connected socket, plain or TLS."""

    def __init__(self, connection):
        super().__init__()
        self.connection, self.seen = connection, b""

    def send(self, text):
        self.connection.sendall(text.encode())

    def until(self, done):
        while not done():
            try:
                data = self.connection.recv(4096)
            except OSError:
                return False
            if not data:
                return False
            self.seen += data
            self.parser.Parse(data, False)
        return True

    def next(self, name):
        found = lambda: [e for e in self.elements if e["name"] == name]  # noqa: E731
        if not self.until(found):
            raise RuntimeError(f"no {name}, but {self.elements}")
        element = found()[0]
        self.elements.remove(element)
        return element

    def finish(self):
        """Reads to the end; the condition of the stream error, if there was one."""
        self.until(lambda: self.closed)
        errors = [e for e in self.elements if e["name"] == f"{STREAMS} error"]
        return errors[0]["children"][0]["name"].split(" ")[1] if errors else None


def browse(zeroconf, settings):
    seen, gone = {}, []

    def changed(zeroconf, service_type, name, state_change):
        if state_change is ServiceStateChange.Removed:
            gone.append(name)
        else:
            try:
                info = zeroconf.get_service_info(service_type, name, 5000)
            except Exception:
                # The script has reported, and is about to end.
                return
            if info:
                text = {k.decode(): (v or b"").decode() for k, v in info.properties.items()}
                seen[name] = {"port": info.port, "host": info.server, "txt": text,
                              "addresses": info.parsed_addresses(IPVersion.V4Only)}  # fmt: skip
    return seen, gone, ServiceBrowser(zeroconf, SERVICE, handlers=[changed])


async def until(done, what):
    for _ in range(2000):
        if done():
            return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"{what} did not happen")


def tls_context(server, settings):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    if not server:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    key, cert = certificate(Path(settings["directory"]), settings.get("keys", "python"))
    made.load_cert_chain(cert, key)
    return made


def call(settings, own, peer, port, address):
    connection = socket.create_connection((address, port), 20)
    plain = Stream(connection)
    plain.send(header(own, peer))
    features = plain.next(f"{STREAMS} features")
    starttls = next(c for c in features["children"] if c["name"] == f"{TLS} starttls")
    report = {
        "header": plain.header,
        "features": sorted(c["name"] for c in starttls["children"]),
        "offer": next(c for c in starttls["children"] if c["name"].endswith(" offer"))["children"][0]["children"][0]["text"],
    }
    if settings.get("plain"):
        plain.send("<message><body>in clear</body></message>")
        error = plain.finish()
        told = [e for e in plain.elements if e["name"] == "jabber:client message"]
        return {**report, "error": error, "told": [[e["attributes"], e["children"][0]["text"]] for e in told]}
    inject = "<message><body>injected</body></message>" if settings.get("inject") else ""
    plain.send(f"<starttls xmlns='{TLS}'/>{inject}")
    if inject:
        return {**report, "error": plain.finish(), "proceed": b"proceed" in plain.seen}
    plain.next(f"{TLS} proceed")
    secure = tls_context(False, settings).wrap_socket(connection)
    report["tls"] = secure.version()
    report["peer_print"] = fingerprint(secure.getpeercert(binary_form=True), "sha256")
    stream = Stream(secure)
    stream.send(header(own, peer))
    stream.until(lambda: stream.header)
    if not settings.get("say"):
        return {**report, "error": stream.finish()}
    stream.send(f"<message from='{own}' to='{peer}'><body>{settings['say']}</body></message>")
    message = stream.next("jabber:client message")
    report["heard"] = message["children"][0]["text"]
    report["addresses"] = {k: message["attributes"][k] for k in ("from", "to")}
    stream.send("</stream:stream>")
    report["error"] = stream.finish()
    report["closed"] = stream.closed
    return report


def serve(settings, listener, own):
    connection, _ = listener.accept()
    connection.settimeout(20)
    plain = Stream(connection)
    plain.until(lambda: plain.header)
    peer = plain.header["from"]
    offered = f"<starttls xmlns='{TLS}'><required/></starttls>" if settings.get("starttls", True) else ""
    plain.send(header(own, peer) + f"<stream:features>{offered}</stream:features>")
    report = {"header": plain.header}
    if not offered:
        report["closed"] = plain.until(lambda: plain.closed)
        report["seen"] = plain.seen.decode()
        return report
    plain.next(f"{TLS} starttls")
    plain.send(f"<proceed xmlns='{TLS}'/>")
    made = tls_context(True, settings)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=settings["peer_certificate"])
    secure = made.wrap_socket(connection, server_side=True)
    report["tls"] = secure.version()
    report["peer_print"] = fingerprint(secure.getpeercert(binary_form=True), "sha256")
    stream = Stream(secure)
    if not stream.until(lambda: stream.header):
        return {**report, "seen": stream.seen.decode()}
    stream.send(header(own, peer) + "<stream:features/>")
    report["heard"] = stream.next("jabber:client message")["children"][0]["text"]
    stream.send(f"<message><body>{settings['say']}</body></message>")
    stream.until(lambda: stream.closed)
    stream.send("</stream:stream>")
    return report


def forged(info, what):
    """A response that is not true; `info` is what is true."""
    message = DNSOutgoing(RESPONSE)
    text = b"\x0bstatus=away"
    records = {
        "place": [DNSService(info.name, SRV, ALONE, 120, 0, 0, 6666, "evil.local.")],
        "properties": [DNSText(info.name, TXT, ALONE, 4500, text)],
        "address": [DNSAddress(info.server, A, ALONE, 120, socket.inet_aton("10.77.0.66"))],
        "goodbye": [
            DNSPointer(SERVICE, PTR, IN, 0, info.name),
            DNSService(info.name, SRV, ALONE, 0, 0, 0, info.port, info.server),
        ],
    }
    for record in records[what]:
        message.add_answer_at_time(record, 0)
    return message.packets()[0]


def multicast(address):
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    made.bind(("", PORT))
    return made


def on_link(interface, family):
    """A socket for this interface only, in the group."""
    index = socket.if_nametoindex(interface)
    made = socket.socket(family, socket.SOCK_DGRAM)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    if family == socket.AF_INET:
        made.bind(("", PORT))
        group = struct.pack("4s4si", socket.inet_aton(GROUP), bytes(4), index)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, group)
        there = (GROUP, PORT)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("::", PORT))
        group = socket.inet_pton(family, GROUP_V6) + struct.pack("I", index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        there = (GROUP_V6, PORT, 0, index)
    made.settimeout(3)
    return made, there


def addresses_on(interface, family):
    link, there = on_link(interface, family)
    query = DNSOutgoing(0)
    query.add_question(DNSQuestion(SERVICE, PTR, IN))
    with link:
        for _ in range(10):
            link.sendto(query.packets()[0], there)
            try:
                while True:
                    records = DNSIncoming(link.recv(9000)).answers()
                    found = [r for r in records if isinstance(r, DNSAddress)]
                    if found:
                        return [socket.inet_ntop(socket.AF_INET if r.type == A else socket.AF_INET6, r.address) for r in found]
            except TimeoutError:
                pass
    raise RuntimeError(f"nobody answers on {interface}")


def links(settings):
    families = (socket.AF_INET, socket.AF_INET6)
    return {name: sorted(a for f in families for a in addresses_on(name, f)) for name in settings["interfaces"]}


async def story(settings):
    if settings["role"] == "links":
        return await asyncio.to_thread(links, settings)
    zeroconf = Zeroconf(interfaces=[settings["address"]], ip_version=IPVersion.V4Only)
    thread = asyncio.to_thread
    try:
        if settings["role"] == "serve":
            listener = socket.create_server((settings["address"], 0))
            listener.settimeout(40)
            own = settings["name"]
            info = ServiceInfo(
                SERVICE, f"{own}.{SERVICE}", parsed_addresses=[*settings.get("dead", []), settings["address"]],
                server="python.local.", port=listener.getsockname()[1], properties={"txtvers": "1", "status": "avail"},
            )  # fmt: skip
            await zeroconf.async_register_service(info)
            print("announced", flush=True)
            return await thread(serve, settings, listener, own)
        seen, gone, _browser = browse(zeroconf, settings)
        if settings["role"] == "browse":
            await until(lambda: len(seen) >= settings["count"], f"{settings['count']} names")
            print("seen", flush=True)
            if settings.get("gone_after"):
                await until(lambda: len(gone) >= settings["count"], "goodbye")
            return {"seen": seen, "gone": gone}
        name = f"{settings['name']}.{SERVICE}"
        await until(lambda: name in seen, name)
        if settings["role"] == "forge":
            info = await thread(zeroconf.get_service_info, SERVICE, name, 5000)
            with multicast(settings["address"]) as link:
                link.sendto(forged(info, settings["what"]), (GROUP, PORT))
            return {"server": info.server, "port": info.port}
        return await thread(
            call, settings, settings["own"], settings["name"], seen[name]["port"], seen[name]["addresses"][0]
        )
    finally:
        await thread(zeroconf.close)


main(story)
