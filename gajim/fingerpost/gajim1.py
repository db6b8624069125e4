"""What the plugin needs of Gajim 1.7 and GTK 3. `gajim2.py` has the same names for Gajim 2 and GTK 4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gajim.common import app
from gajim.common.events import Notification
from gajim.gtk.dialogs import ErrorDialog
from gajim.gtk.filechoosers import FileChooserDialog
from gi.repository import Gio, Gtk


def put(parent: Any, child: Gtk.Widget) -> None:
    """Adds a widget at the end of a box, or as the child of another widget."""
    parent.add(child)


def children(widget: Any) -> list[Any]:
    return list(widget.get_children())


def style(widget: Gtk.Widget, name: str, on: bool = True) -> None:
    """Gives a widget a class of the style sheets, or takes it away."""
    context = widget.get_style_context()
    if on:
        context.add_class(name)
    else:
        context.remove_class(name)


def show(widget: Gtk.Widget) -> None:
    """Makes a widget visible, with all within."""
    widget.show_all()


def keep(window: Gtk.Window) -> None:
    """Lets a window be hidden, not destroyed, when its user closes it."""
    window.connect("delete-event", lambda window, _event: window.hide() or True)
    window.connect("focus-in-event", lambda window, _event: window.set_urgency_hint(False))


def when_closed(window: Gtk.Window, act: Callable[[], None]) -> None:
    """Calls `act` when the user closes a window, which is destroyed then."""
    window.connect("destroy", lambda _window: act())


def attract(window: Gtk.Window) -> None:
    """Shows a window, but does not take the keyboard away from what the user types into.

    Not every window manager complies, so no button of the window has the focus: a key that is meant for another window
    presses nothing.
    """
    window.set_focus_on_map(False)
    if not window.get_visible():
        window.show()
        window.set_focus(None)
    window.set_urgency_hint(not window.is_active())


def complain(title: str, text: str) -> None:
    ErrorDialog(title, text)


def choose_files(chosen: Callable[[list[Path]], None]) -> None:
    """Lets the user choose files to send."""
    FileChooserDialog(lambda paths: chosen([Path(path) for path in paths]), select_multiple=True, transient_for=app.window)


def notify(account: str, peer: str, title: str, text: str) -> None:
    """Shows a notification of the desktop."""
    app.ged.raise_event(Notification(account=account, type="file-request-received", title=title, text=text, jid=peer))


class ChatMenu:
    """The menu of the chat that is shown. Gajim makes a new one for each contact."""

    def __init__(self, box: Gtk.Box, fill: Callable[[Gio.Menu], None]):
        """`box` is that of the extension point `message_actions_box`. `fill` adds entries to a new menu."""
        self._button: Any = _named(box, "settings_menu")
        self._fill = fill

    def contact_shown(self) -> None:
        menu = None if self._button is None else self._button.get_menu_model()
        if isinstance(menu, Gio.Menu):
            self._fill(menu)

    def close(self) -> None:
        """Fills no more menus."""
        self._button = None


def _named(widget: Gtk.Widget, name: str) -> Gtk.Widget | None:
    """Returns the widget with this name in Gajim's description of the window."""
    if Gtk.Buildable.get_name(widget) == name:
        return widget
    if isinstance(widget, Gtk.Container):
        for child in widget.get_children():
            found = _named(child, name)
            if found is not None:
                return found
    return None
