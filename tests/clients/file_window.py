"""A real client with its window that sends a file to a contact, receives one, or chats with the component.

Runs under Debian's Python in a network namespace. Settings: `client`, `prefix` (the words before the command of a program of another
Debian), `jid`, `password`, `contact` (a bare address), `component`, `contact_name`, `home`; `file`, if it sends; `name` and `size` of the
file, if it receives; `chat`, if it chats: pairs of what it writes and a part of the answer; `screenshot`: the file for a picture of the
end, if one is wanted.
Prints `ready` when it can receive, and then `report: ` with the received file, or with what a sender says of the transfer.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
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


def saved():
    """The received file, when all of it is there."""
    path = home / settings["name"]
    return desktop.wait("the file", lambda: path.exists() and path.stat().st_size == settings["size"] and path)


class Dino:
    """Dino 0.4 and 0.5: GTK 4."""

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
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'account_settings'").fetchone():
                # Dino 0.5 has "OMEMO by default" on, and then sends nothing to a contact without it.
                database.execute("INSERT INTO account_settings (account_id, key, value) SELECT id, 'default-encryption', '0' FROM account")
        self._start()

    def _start(self):
        self.process = desktop.program = subprocess.Popen([*settings["prefix"], "dino-im"])
        desktop.wait("the window", lambda: desktop.windows("Dino"))

    def _connection(self):
        return sqlite3.connect(self.data / "dino.db", timeout=desktop.PATIENCE)

    def _find(self, query, *values):
        with self._connection() as database:
            return database.execute(query, values).fetchone()

    def _transfers(self, condition):
        return self._find(f"SELECT path FROM file_transfer WHERE {condition}")

    def _open(self, address):
        uri = f"xmpp:{quote(address, safe='@')}?message"
        subprocess.run([*settings["prefix"], "dino-im", uri], check=True, timeout=desktop.PATIENCE)

    def chat(self, lines):
        address = settings["component"]
        self._open(address)
        is_open = "SELECT 1 FROM conversation JOIN jid ON jid_id = jid.id WHERE bare_jid = ? AND active = 1"
        desktop.wait("the chat", lambda: self._find(is_open, address))
        for text, answer in lines:
            desktop.type_into("Dino", text)
            desktop.press("Dino", "Return")
            # 0: received.
            desktop.wait(answer, lambda: self._find("SELECT 1 FROM message WHERE direction = 0 AND instr(body, ?)", answer))

    def send(self, path):
        self._open(settings["contact"])

        # The last entry of the home directory: what is typed into the dialog is completed while it is typed.
        shutil.copy(path, home)

        def sent():
            # The key works once the contact has come and has said what it takes.
            desktop.press_until("Dino", "ctrl+u", "Select file")
            desktop.press_until_gone("Select file", "alt+Home", "End", "Return")
            for _ in range(100):
                # The button for it has the keyboard.
                desktop.press("Dino", "Return")
                # 1: sent.
                if found := self._transfers("direction = 1"):
                    return found
                time.sleep(0.1)
            # The dialog has closed without a file.
            return None

        desktop.wait("the sent file", sent)

    def receive(self):
        """The file, when Dino says that it is complete. Dino takes small files of contacts by itself."""
        # 0: received; 0: complete.
        complete = "direction = 0 AND state = 0 AND path IS NOT NULL"
        found = desktop.wait("the file", lambda: self._transfers(complete))
        return self.data / "files" / found[0]


class Pidgin:
    """Pidgin 2.14: GTK 2. Its library is reached by D-Bus, and its windows by the keyboard."""

    def __init__(self):
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
        self.process = desktop.program = subprocess.Popen(["pidgin"], cwd=home)
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

    def chat(self, lines):
        purple = self._purple()
        # 1: with a person.
        window = purple.PurpleConversationNew(1, purple.PurpleAccountsGetAllActive()[0], settings["component"])
        title = purple.PurpleConversationGetTitle(window)

        def said():
            return [purple.PurpleConversationMessageGetMessage(message) for message in purple.PurpleConversationGetMessageHistory(window)]

        for text, answer in lines:
            desktop.type_into(title, text)
            desktop.press(title, "Return")
            desktop.wait(answer, lambda: any(answer in message for message in said()))

    def send(self, path):
        desktop.wait("the contact", lambda: self._is_here(settings["contact"]))
        purple = self._purple()
        connection = purple.PurpleAccountGetConnection(purple.PurpleAccountsGetAllActive()[0])
        purple.ServSendFile(connection, settings["contact"], path)

    def receive(self):
        # "Alice wants to send you letter.bin"
        desktop.press_until_gone("Pidgin", "alt+a")
        desktop.press_until_gone("Save File...", "alt+s")

        # Its list of transfers must not be asked for by D-Bus, which would free it.
        return saved()


class Psi:
    """Psi+ 1.4: Qt 5. Its chats are opened by D-Bus."""

    def __init__(self):
        profile = home / ".config/psi+/profiles/default"
        profile.mkdir(parents=True)
        (profile / "accounts.xml").write_text(f"""<!DOCTYPE accounts>
<accounts xmlns="http://psi-im.org/options" version="1.4.554"><accounts><a0>
<enabled type="bool">true</enabled><auto type="bool">true</auto><ignore-SSL-warnings type="bool">true</ignore-SSL-warnings>
<id type="QString">{{11111111-1111-1111-1111-111111111111}}</id><name type="QString">test</name>
<jid type="QString">{settings["jid"]}</jid><resource type="QString">psi</resource>
<automatic-resource type="bool">false</automatic-resource><ssl type="QString">auto</ssl><port type="int">5222</port>
<priority type="int">5</priority>
</a0></accounts></accounts>
""")
        if "file" not in settings:
            # The question for a file comes at once. A file of options also changes the place of the buttons.
            (profile / "options.xml").write_text("""<!DOCTYPE psi>
<psi xmlns="http://psi-im.org/options" version="1.4.554"><options><ui>
<file-transfer><auto-popup type="bool">true</auto-popup></file-transfer><tip><show type="bool">false</show></tip>
</ui></options></psi>
""")
        self.process = desktop.program = subprocess.Popen(["psi-plus"], cwd=home)
        desktop.type_into("Wrong Account Password", settings["password"])
        desktop.press_until_gone("Wrong Account Password", "Return")

    def _open(self, address):
        found = dbus.SessionBus().get_object("org.psi-im.Psi", "/Main")
        uri = f"xmpp:{quote(address, safe='@')}?message;type=chat"
        dbus.Interface(found, "org.psi_im.Psi.Main").openURI(uri)
        return True

    def send(self, path):
        chat = settings["contact_name"]

        def chooser():
            if not desktop.windows(chat):
                self._open(settings["contact"])
            # No key presses the button. It is the second of those on the right, above the field for the text.
            for window in desktop.windows(chat)[:1]:
                desktop.click_at(window, desktop.width(window) - 121, 157)
            return desktop.windows("Choose a file")

        desktop.wait("the dialog", chooser)
        desktop.type_into("Choose a file", path)
        desktop.press_until_gone("Choose a file", "Return")

        def started():
            if desktop.windows("Transfer Manager"):
                return "sent"
            if desktop.windows("Error"):
                return "refused"
            desktop.press("Send File", "alt+s")
            return None

        return desktop.wait("the transfer", started)

    def receive(self):
        desktop.wait("the question", lambda: desktop.windows("Receive File"))
        desktop.press_until("Receive File", "alt+a", "Save As")
        desktop.press_until_gone("Save As", "Return")
        return saved()


def main():
    screen = desktop.start_screen()
    client = {"dino": Dino, "pidgin": Pidgin, "psi-plus": Psi}[settings["client"]]()
    try:
        if "file" in settings:
            report(client.send(settings["file"]))
            # The file is on its way: the test ends this program.
            client.process.wait()
        elif "chat" in settings:
            client.chat(settings["chat"])
            report()
        else:
            say("ready")
            report(client.receive())
    finally:
        client.process.kill()
        screen.kill()


main()
