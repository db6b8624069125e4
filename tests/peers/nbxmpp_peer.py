"""Users on nbxmpp, Gajim's library. Runs under Debian's Python, where nbxmpp is installed."""

import json
import sys

from gi.repository import Gio, GLib
from nbxmpp.client import Client
from nbxmpp.const import ConnectionProtocol, ConnectionType, Mode

settings = json.loads(sys.argv[1])
loop = GLib.MainLoop()
report = {}


def fail(error):
    report["error"] = f"{type(error).__name__}: {error}"
    GLib.idle_add(loop.quit)


def login(name, resource, connected):
    """Logs a user in; `connected(client)` is called when it is."""
    user = settings["users"][name]
    local, domain = user["jid"].split("@")
    host = f"{settings['server']['host']}:{settings['server']['port']}"
    client = Client()
    client.set_mode(Mode.CLIENT)
    client.set_username(local)
    client.set_domain(domain)
    client.set_resource(resource)
    client.set_password(user["password"])
    client.set_accepted_certificates([Gio.TlsCertificate.new_from_file(settings["server"]["ca"])])
    client.set_ignored_tls_errors({Gio.TlsCertificateFlags.UNKNOWN_CA, Gio.TlsCertificateFlags.BAD_IDENTITY})
    client.set_custom_host(host, ConnectionProtocol.TCP, ConnectionType.START_TLS)
    client.subscribe("login-successful", lambda *_: None)
    client.subscribe("resume-failed", lambda *_: None)
    client.subscribe("connected", lambda *_: connected(client))
    client.subscribe("disconnected", lambda *_: fail(RuntimeError(f"disconnected: {client.get_error()}")))
    client.subscribe("connection-failed", lambda *_: fail(RuntimeError("no connection")))
    client.connect()
    return client


def run(seconds=300):
    """Runs until the loop is quit, then prints the report. Exit status 1 on an error."""
    GLib.timeout_add_seconds(seconds, lambda: fail(RuntimeError("it took too long")))
    loop.run()
    print(("failed: " if "error" in report else "report: ") + json.dumps(report), flush=True)
    sys.exit(1 if "error" in report else 0)
