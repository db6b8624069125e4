"""The screen of a Gajim with GTK 4. `screen3.py` has the same names for GTK 3."""

from gi.repository import Gio, GLib, Graphene, Gtk
from PIL import Image


def children(widget):
    found, child = [], widget.get_first_child()
    while child is not None:
        found.append(child)
        child = child.get_next_sibling()
    return found


def windows():
    return [w for w in Gtk.Window.list_toplevels() if w.get_mapped()]


def entry_of(widget):
    """The text of an entry of a menu; None if it is something else."""
    # Python cannot name the class, which is internal to GTK.
    return widget.get_property("text") if widget.__gtype__.name == "GtkModelButton" else None


def is_menu_button(widget):
    return isinstance(widget, Gtk.MenuButton) and (widget.get_buildable_id() or "").lstrip("_") == "chat_menu_button"


def open_menu(button):
    if button.get_popover() is not None:
        button.popdown()
    button.popup()


def choose(entry):
    entry.emit("clicked")


def select(dialog, path):
    """Selects a file in a dialog, and says what is selected."""
    if _selected(dialog) != [path]:
        dialog.set_file(Gio.File.new_for_path(path))
    return _selected(dialog)


def _selected(dialog):
    return [file.get_path() for file in dialog.get_files()]


def resize(window, width, height):
    window.set_default_size(width, height)


def size(window):
    return [window.get_width(), window.get_height()]


def draw(window, path):
    # What was opened just now is drawn in the next frames.
    frames = []
    window.queue_draw()
    window.add_tick_callback(lambda *_: frames.append(True) or len(frames) < 5)
    while len(frames) < 5:
        GLib.MainContext.default().iteration(True)
    snapshot = Gtk.Snapshot()
    left, top = window.get_surface_transform()
    _paint(snapshot, window, 0, 0)
    width, height = window.get_width(), window.get_height()
    # What is open above the window belongs to the picture.
    for popover in _popovers(window):
        surface, (inner_left, inner_top) = popover.get_surface(), popover.get_surface_transform()
        x, y = surface.get_position_x() + inner_left - left, surface.get_position_y() + inner_top - top
        _paint(snapshot, popover, x, y)
        width, height = max(width, x + popover.get_width()), max(height, y + popover.get_height())
    area = Graphene.Rect().init(0, 0, width, height)
    window.get_renderer().render_texture(snapshot.to_node(), area).save_to_png(path)
    # GTK writes large files.
    with Image.open(path) as picture:
        picture.save(path, optimize=True)


def _paint(snapshot, widget, x, y):
    snapshot.save()
    snapshot.translate(Graphene.Point().init(x, y))
    Gtk.WidgetPaintable(widget=widget).snapshot(snapshot, widget.get_width(), widget.get_height())
    snapshot.restore()


def _popovers(widget):
    for child in children(widget):
        if isinstance(child, Gtk.Popover) and child.get_mapped():
            yield child
        else:
            yield from _popovers(child)
