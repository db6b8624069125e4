"""A plugin for tests: reads commands from a socket, and does with the widgets what a user does with the mouse.

Commands and answers are lines of JSON. It knows nothing of the tested plugin but what is on the screen.
"""

import json
import logging
import os

from gi.repository import Gio, GLib, Gtk
from nbxmpp.protocol import JID, Iq, Presence
from nbxmpp.simplexml import Node

from gajim.common import app
from gajim.plugins import GajimPlugin

if Gtk.get_major_version() == 3:
    from . import screen3 as screen
else:
    from . import screen4 as screen

log = logging.getLogger("gajim.p.driver")


def visible(widget):
    """The widgets that are on the screen, in their order."""
    if not widget.get_mapped():
        return
    yield widget
    for child in screen.children(widget):
        yield from visible(child)


def label_of(widget):
    """The text on a button or an entry of a menu."""
    return widget.get_label() if isinstance(widget, Gtk.Button) else screen.entry_of(widget)


def texts(widget):
    if not widget.get_mapped():
        return
    if isinstance(widget, Gtk.Entry):
        yield widget.get_text() or widget.get_placeholder_text() or ""
    elif isinstance(widget, Gtk.TextView):
        yield widget.get_buffer().get_property("text")
    elif isinstance(widget, Gtk.ProgressBar):
        yield widget.get_text() or ""
    else:
        if isinstance(widget, Gtk.Label) and widget.get_text():
            yield widget.get_text()
        for child in screen.children(widget):
            yield from texts(child)


def rows_of(window):
    """The rows of the list in a window."""
    [rows] = [w for w in visible(window) if isinstance(w, Gtk.ListBox)]
    return [row for row in screen.children(rows) if isinstance(row, Gtk.ListBoxRow) and row.get_mapped()]


class Driver(GajimPlugin):
    def init(self):
        self.description = ""
        self.config_dialog = None

    def activate(self):
        client = Gio.SocketClient()
        self._connection = client.connect(Gio.UnixSocketAddress.new(os.environ["FINGERPOST_DRIVER"]), None)
        self._input = Gio.DataInputStream.new(self._connection.get_input_stream())
        self._say({"event": "started"})
        self._next()

    def _say(self, answer):
        self._connection.get_output_stream().write_all((json.dumps(answer) + "\n").encode(), None)

    def _next(self):
        self._input.read_line_async(GLib.PRIORITY_DEFAULT, None, self._line)

    def _line(self, stream, result):
        line, _ = stream.read_line_finish_utf8(result)
        if line is None:
            return
        command = json.loads(line)
        try:
            answer = {"value": getattr(self, "do_" + command.pop("do"))(**command)}
        except Exception as error:
            log.exception("a command failed")
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._say(answer)
        self._next()

    # --- parts

    @staticmethod
    def _windows(title=None):
        return [w for w in screen.windows() if title is None or (w.get_title() or "").startswith(title)]

    def _window(self, title):
        return self._windows(title)[0]

    def _menu_button(self):
        return next(w for w in visible(app.window) if screen.is_menu_button(w))

    def _entries(self):
        popover = self._menu_button().get_popover()
        return [w for w in visible(popover) if screen.entry_of(w)] if popover is not None else []

    # --- commands

    def do_online(self):
        return {client.account: bool(client.state.is_available) for client in app.get_clients()}

    def do_install(self, archive):
        """Installs a plugin, as the button in Gajim's window of plugins does."""
        app.plugin_manager.activate_plugin(app.plugin_manager.install_from_zip(archive))

    def do_deactivate(self, name):
        app.plugin_manager.deactivate_plugin(app.plugin_manager.get_plugin(name))

    def do_activate(self, name):
        app.plugin_manager.activate_plugin(app.plugin_manager.get_plugin(name))

    def do_configure(self, name):
        """What the button in Gajim's window of plugins does."""
        app.plugin_manager.get_plugin(name).config_dialog(app.window)

    def do_windows(self):
        return [window.get_title() for window in self._windows()]

    def do_texts(self, window):
        """What can be read in a window; None if it is not on the screen."""
        found = self._windows(window)
        return list(texts(found[0])) if found else None

    def do_rows(self, window):
        """For each row of the list in a window: its texts, and its buttons that can be pressed."""
        found = self._windows(window)
        return [
            {"texts": list(texts(row)), "buttons": [label_of(w) for w in visible(row) if label_of(w) and w.get_sensitive()]}
            for row in rows_of(found[0])
        ] if found else []  # fmt: skip

    def do_focus(self, window):
        """The button that the keyboard would press in a window; None if it would press nothing."""
        focus = self._window(window).get_focus()
        return None if focus is None else label_of(focus)

    def do_chat(self, jid):
        # The first account is enough for all tests.
        account = next(iter(app.settings.get_active_accounts()))
        kind = "contact" if Gtk.get_major_version() == 3 else "chat"
        app.window.add_chat(account, JID.from_string(jid), kind, select=True)

    def do_open_menu(self):
        screen.open_menu(self._menu_button())

    def do_menu(self):
        """The entries of the open menu of the chat."""
        return [screen.entry_of(entry) for entry in self._entries()]

    def do_choose(self, entry):
        """Chooses an entry of the open menu."""
        screen.choose(next(w for w in self._entries() if screen.entry_of(w) == entry))

    def do_select_file(self, path):
        """Selects a file in the open dialog, and says what is selected."""
        return screen.select(self._dialog(), path)

    def do_accept_files(self):
        self._dialog().response(Gtk.ResponseType.ACCEPT)

    def _dialog(self):
        return next(w for w in self._windows() if isinstance(w, Gtk.FileChooserDialog))

    def do_click(self, window, button, row=None, number=0):
        """Clicks a button in a window, or in one row of its list; `number` is which of several."""
        within = self._window(window)
        if row is not None:
            within = rows_of(within)[row]
        [w for w in visible(within) if label_of(w) == button and w.get_sensitive()][number].emit("clicked")

    def do_close(self, window):
        self._window(window).close()

    def do_resize(self, window, width, height):
        screen.resize(self._window(window), width, height)

    def do_size(self, window):
        return screen.size(self._window(window))

    def do_screenshot(self, window, path):
        screen.draw(self._window(window), path)

    def do_send(self, stanza):
        """Sends an IQ of the first account, and remembers what this account receives from now on."""
        connection = app.get_clients()[0].connection
        self._received = []
        connection.subscribe("stanza-received", self._remember)
        connection.send_stanza(Iq(node=Node(node=stanza)))

    def _remember(self, _client, _signal, stanza):
        self._received.append(str(stanza))

    def do_received(self):
        return self._received

    def do_poke(self):
        """Sends something, so that a cut connection is noticed."""
        for client in app.get_clients():
            if client.state.is_available:
                client.connection.send_stanza(Presence())

    def do_disconnect(self):
        for client in app.get_clients():
            client.change_status("offline", "")

    def do_connect(self):
        for client in app.get_clients():
            client.change_status("online", "")
