"""The screen of a Gajim with GTK 3. `screen4.py` has the same names for GTK 4."""

from gi.repository import Gdk, Gtk


def children(widget):
    found = []
    if isinstance(widget, Gtk.Container):
        widget.forall(found.append)
    return found


def windows():
    return [w for w in Gtk.Window.list_toplevels() if w.get_mapped() and not isinstance(w, Gtk.Invisible)]


def entry_of(widget):
    """The text of an entry of a menu; None if it is something else."""
    return widget.get_property("text") if isinstance(widget, Gtk.ModelButton) else None


def is_menu_button(widget):
    return Gtk.Buildable.get_name(widget) == "settings_menu"


def open_menu(button):
    popover = button.get_popover()
    # There is no window manager that would let it have the keyboard.
    popover.set_modal(False)
    popover.set_transitions_enabled(False)
    popover.popup()


def choose(entry):
    entry.clicked()


def select(dialog, path):
    """Selects a file in a dialog, and says what is selected."""
    if dialog.get_filenames() != [path]:
        dialog.select_filename(path)
    return dialog.get_filenames()


def resize(window, width, height):
    window.resize(width, height)


def size(window):
    return [window.get_allocated_width(), window.get_allocated_height()]


def draw(widget, path):
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
