"""A plugin for tests: reads commands from a socket, and does with the widgets what a user does with the mouse.

Commands and answers are lines of JSON. It knows nothing of the tested plugin but what is on the screen.
"""

import json
import logging
import os

from gi.repository import Gdk, Gio, GLib, Gtk
from nbxmpp.protocol import JID, Presence

from gajim.common import app
from gajim.plugins import GajimPlugin

log = logging.getLogger("gajim.p.driver")


def children(widget):
    found = []
    if isinstance(widget, Gtk.Container):
        widget.forall(found.append)
    return found


def visible(widget):
    """The widgets that are on the screen, in their order."""
    if not widget.get_mapped():
        return
    yield widget
    for child in children(widget):
        yield from visible(child)


def label_of(widget):
    """The text on a button or an entry of a menu."""
    if isinstance(widget, Gtk.ModelButton):
        return widget.get_property("text")
    if isinstance(widget, Gtk.Button):
        return widget.get_label()
    return None


def texts(widget):
    for part in visible(widget):
        if isinstance(part, Gtk.Label) and part.get_text():
            yield part.get_text()
        elif isinstance(part, Gtk.Entry):
            yield part.get_text() or part.get_placeholder_text() or ""
        elif isinstance(part, Gtk.TextView):
            yield part.get_buffer().get_property("text")
        elif isinstance(part, Gtk.ProgressBar):
            yield part.get_text() or ""


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
        found = [w for w in Gtk.Window.list_toplevels() if w.get_mapped() and not isinstance(w, Gtk.Invisible)]
        return [w for w in found if title is None or (w.get_title() or "").startswith(title)]

    def _window(self, title):
        return self._windows(title)[0]

    def _menu_button(self):
        return next(w for w in visible(app.window) if Gtk.Buildable.get_name(w) == "settings_menu")

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
        if not found:
            return []
        [rows] = [w for w in visible(found[0]) if isinstance(w, Gtk.ListBox)]
        return [
            {"texts": list(texts(row)), "buttons": [label_of(w) for w in visible(row) if label_of(w) and w.get_sensitive()]}
            for row in rows.get_children() if row.get_mapped()
        ]  # fmt: skip

    def do_chat(self, jid):
        # The first account is enough for all tests.
        account = next(iter(app.settings.get_active_accounts()))
        app.window.add_chat(account, JID.from_string(jid), "contact", select=True)

    def do_open_menu(self):
        popover = self._menu_button().get_popover()
        # There is no window manager that would let it have the keyboard.
        popover.set_modal(False)
        popover.set_transitions_enabled(False)
        popover.popup()

    def do_menu(self):
        """The entries of the open menu of the chat."""
        popover = self._menu_button().get_popover()
        return [w.get_property("text") for w in visible(popover) if isinstance(w, Gtk.ModelButton)]

    def do_choose(self, entry):
        """Chooses an entry of the open menu."""
        popover = self._menu_button().get_popover()
        next(w for w in visible(popover) if isinstance(w, Gtk.ModelButton) and w.get_property("text") == entry).clicked()

    def do_select_file(self, path):
        """Selects a file in the open dialog, and says what is selected."""
        dialog = self._dialog()
        if dialog.get_filenames() != [path]:
            dialog.select_filename(path)
        return dialog.get_filenames()

    def do_accept_files(self):
        self._dialog().response(Gtk.ResponseType.ACCEPT)

    def _dialog(self):
        return next(w for w in self._windows() if isinstance(w, Gtk.FileChooserDialog))

    def do_click(self, window, button, row=None, number=0):
        """Clicks a button in a window, or in one row of its list; `number` is which of several."""
        within = self._window(window)
        if row is not None:
            [rows] = [w for w in visible(within) if isinstance(w, Gtk.ListBox)]
            within = rows.get_children()[row]
        [w for w in visible(within) if label_of(w) == button and w.get_sensitive()][number].clicked()

    def do_close(self, window):
        self._window(window).close()

    def do_resize(self, window, width, height):
        self._window(window).resize(width, height)

    def do_size(self, window):
        within = self._window(window)
        return [within.get_allocated_width(), within.get_allocated_height()]

    def do_screenshot(self, window, path):
        widget = self._window(window)
        window = widget.get_window()
        window.raise_()
        # What was opened just now is drawn in the next frames.
        frames = []
        widget.queue_draw()
        widget.add_tick_callback(lambda *_: frames.append(True) or len(frames) < 5)
        while len(frames) < 5:
            Gtk.main_iteration()
        Gdk.Display.get_default().sync()
        # From the screen: what is open above the window belongs to the picture.
        _, x, y = window.get_origin()
        picture = Gdk.pixbuf_get_from_window(Gdk.get_default_root_window(), x, y, window.get_width(), window.get_height())
        picture.savev(path, "png", ["compression"], ["9"])

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
