"""What the plugin needs of Gajim 2 and GTK 4. `gajim1.py` has the same names for Gajim 1.7 and GTK 3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gajim.common import app
from gajim.common.events import Notification
from gi.repository import Gio, GLib, Gtk


def put(parent: Any, child: Gtk.Widget) -> None:
    """Adds a widget at the end of a box, or as the child of another widget."""
    if isinstance(parent, Gtk.Box):
        parent.append(child)
    else:
        parent.set_child(child)


def children(widget: Gtk.Widget) -> list[Any]:
    found, child = [], widget.get_first_child()
    while child is not None:
        found.append(child)
        child = child.get_next_sibling()
    return found


def style(widget: Gtk.Widget, name: str, on: bool = True) -> None:
    """Gives a widget a class of the style sheets, or takes it away."""
    if on:
        widget.add_css_class(name)
    else:
        widget.remove_css_class(name)


def show(widget: Gtk.Widget) -> None:
    """Makes a widget visible, with all within, which GTK 4 makes visible from the start."""
    widget.set_visible(True)


def keep(window: Gtk.Window) -> None:
    """Lets a window be hidden, not destroyed, when its user closes it."""
    window.set_hide_on_close(True)


def when_closed(window: Gtk.Window, act: Callable[[], None]) -> None:
    """Calls `act` when the user closes a window, which is destroyed then."""
    window.connect("close-request", lambda _window: act())


def attract(window: Gtk.Window) -> None:
    """Shows a window. GTK 4 cannot ask that the keyboard stays with another one, so no button of the window has the focus: a
    key that is meant for another window presses nothing.
    """
    if not window.get_visible():
        window.set_visible(True)
        window.set_focus(None)


def complain(title: str, text: str) -> None:
    Gtk.AlertDialog(message=title, detail=text).show(app.window)


def choose_files(chosen: Callable[[list[Path]], None]) -> None:
    """Lets the user choose files to send."""
    def done(dialog: Gtk.FileDialog, result: Gio.AsyncResult) -> None:
        try:
            files = list(dialog.open_multiple_finish(result))
        except GLib.Error:
            # The user has chosen nothing.
            return
        # Files of other machines, which GVfs has not mounted, have no path.
        chosen([Path(file.get_path()) for file in files if file.get_path()])

    Gtk.FileDialog(title="Choose Files").open_multiple(app.window, None, done)


def notify(account: str, peer: str, title: str, text: str) -> None:
    """Shows a notification of the desktop."""
    app.ged.raise_event(Notification(context_id="", account=account, type="file-request-received", title=title, text=text, jid=peer))


class ChatMenu:
    """The menu of the chat that is shown. Gajim makes a new one each time it opens."""

    def __init__(self, box: Gtk.Box, fill: Callable[[Gio.Menu], None]):
        """`box` is that of the extension point `message_actions_box`. `fill` adds entries to a new menu."""
        self._box, self._fill = box, fill
        self._button: Any = None
        self._handler = 0

    def contact_shown(self) -> None:
        # Before the first chat the box may not be in the window.
        if self._button is None:
            self._button = _named(self._box.get_root(), "chat_menu_button")
            if self._button is not None:
                self._handler = self._button.connect("notify::menu-model", self._opened)

    def _opened(self, button: Any, _property: Any) -> None:
        menu = button.get_menu_model()
        if isinstance(menu, Gio.Menu):
            self._fill(menu)

    def close(self) -> None:
        """Fills no more menus."""
        if self._button is not None:
            self._button.disconnect(self._handler)
            self._button = None


def _named(widget: Gtk.Widget | None, name: str) -> Gtk.Widget | None:
    """Returns the widget with this name in Gajim's description of the window: `name`, or `_name` since 2.3."""
    if widget is None or (isinstance(widget, Gtk.Buildable) and (widget.get_buildable_id() or "").lstrip("_") == name):
        return widget
    for child in children(widget):
        found = _named(child, name)
        if found is not None:
            return found
    return None
