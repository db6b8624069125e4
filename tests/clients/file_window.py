"""A real client with its window that sends a file to a contact, or receives one.

Runs under Debian's Python in a network namespace. Settings: `client`, `jid`, `password`, `contact` (a bare address), `component`,
`home`; `file`, if it sends; `name` of the file, if it receives; `screenshot`: the file for a picture of the end, if one is wanted.
Prints `ready` when it can receive, and then `report: ` with the received file.
"""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import dbus
import desktop

settings = json.loads(sys.argv[1])
home = Path(settings["home"])


def say(line):
    print(line, flush=True)


def report(path=None):
    if settings.get("screenshot"):
        desktop.screenshot(settings["screenshot"])
    say("report: " + json.dumps({"file": path and str(path)}))


class Dino:
    """Dino 0.4: GTK 4."""

    def __init__(self):
        self.data = home / ".local/share/dino"
        # Dino reads files only while it has nothing to draw, which never happens if it draws a moving picture slowly.
        os.environ["GSK_RENDERER"] = "cairo"
        style = home / ".config/gtk-4.0"
        style.mkdir(parents=True)
        (style / "settings.ini").write_text("[Settings]\ngtk-enable-animations=0\n")
        # It makes its tables when it first starts.
        self._start()
        self.process.terminate()
        self.process.wait()
        with self._connection() as database:
            database.execute(
                "INSERT INTO account (bare_jid, resourcepart, password, alias, enabled) VALUES (?, 'dino', ?, '', 1)",
                (settings["jid"], settings["password"]),
            )
        self._start()

    def _start(self):
        self.process = subprocess.Popen(["dino-im"])
        desktop.wait("the window", lambda: desktop.find("frame", "DinoUiMainWindow"))

    def _connection(self):
        return sqlite3.connect(self.data / "dino.db", timeout=desktop.PATIENCE)

    def _open(self, address):
        subprocess.run(["dino-im", f"xmpp:{quote(address, safe='@')}?message"], check=True, timeout=desktop.PATIENCE)

    def send(self, path):
        def paper_clip():
            # It appears only in a chat that is opened after the contact has come.
            self._open(settings["component"])
            self._open(settings["contact"])
            return desktop.find("push button", "Send a file")

        desktop.click(desktop.wait("the paper clip", paper_clip))
        desktop.wait("the dialog", lambda: desktop.find("push button", "Select Select"))
        # The first character opens the field for the path.
        desktop.type_into("Select file", "/")
        desktop.fill(desktop.wait("the field", lambda: desktop.find("text", "GtkFileChooserEntry")), path)
        desktop.wait_and_click("push button", "Select Select")
        desktop.wait_and_click("push button", "Send")

    def receive(self):
        """The file, when Dino says that it is complete. Dino takes small files of contacts by itself."""

        def complete():
            with self._connection() as database:
                received = "SELECT path FROM file_transfer WHERE direction = 0 AND state = 0 AND path IS NOT NULL"
                found = database.execute(received).fetchone()
            return found and self.data / "files" / found[0]

        return desktop.wait("the file", complete)


class Pidgin:
    """Pidgin 2.14: GTK 2. Its library is reached by D-Bus, and its windows by the keyboard: with assistive technologies it crashes."""

    def __init__(self):
        os.environ["NO_AT_BRIDGE"] = "1"
        (home / ".purple").mkdir()
        (home / ".purple/accounts.xml").write_text(f"""<?xml version='1.0' encoding='UTF-8' ?>
<account version='1.0'><account>
<protocol>prpl-jabber</protocol><name>{settings["jid"]}/pidgin</name><password>{settings["password"]}</password>
<settings>
<setting name='connection_security' type='string'>require_tls</setting><setting name='ft_proxies' type='string'></setting>
</settings>
<settings ui='gtk-gaim'><setting name='auto-login' type='bool'>1</setting></settings>
</account></account>
""")
        # Otherwise the dialog for a received file begins with "Recently Used", where it cannot be saved.
        chooser = home / ".config/gtk-2.0"
        chooser.mkdir(parents=True)
        (chooser / "gtkfilechooser.ini").write_text("[Filechooser Settings]\nStartupMode=cwd\n")
        self.process = subprocess.Popen(["pidgin"], cwd=home)
        # The server's certificate.
        desktop.press_until_gone("SSL Certificate Verification", "Return")
        desktop.wait("the login", lambda: self._is_here(settings["component"]))

    def _purple(self):
        """The functions of its library."""
        found = dbus.SessionBus().get_object("im.pidgin.purple.PurpleService", "/im/pidgin/purple/PurpleObject")
        return dbus.Interface(found, "im.pidgin.purple.PurpleInterface")

    def _is_here(self, contact):
        purple = self._purple()
        buddy = purple.PurpleFindBuddy(purple.PurpleAccountsGetAllActive()[0], contact)
        return buddy and purple.PurplePresenceIsOnline(purple.PurpleBuddyGetPresence(buddy))

    def send(self, path):
        desktop.wait("the contact", lambda: self._is_here(settings["contact"]))
        purple = self._purple()
        connection = purple.PurpleAccountGetConnection(purple.PurpleAccountsGetAllActive()[0])
        purple.ServSendFile(connection, settings["contact"], path)

    def receive(self):
        # "Alice wants to send you letter.bin"
        desktop.press_until_gone("Pidgin", "alt+a")
        desktop.press_until_gone("Save File...", "alt+s")

        # A transfer that has ended is no longer in the list.
        desktop.wait("the end of the transfer", lambda: not self._purple().PurpleXfersGetAll())
        return home / Path(settings["name"])


def main():
    screen = desktop.start_screen()
    client = {"dino": Dino, "pidgin": Pidgin}[settings["client"]]()
    try:
        if "file" in settings:
            client.send(settings["file"])
            report()
            # The file is on its way: the test ends this program.
            client.process.wait()
        else:
            say("ready")
            report(client.receive())
    finally:
        client.process.kill()
        screen.kill()


main()
