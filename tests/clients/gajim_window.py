"""Shows pages in the window for commands of Gajim 1.7 (GTK 3, under Xvfb), and looks for every text in it.

Runs under Debian's Python. gajim_pages.py has the settings and the report.
"""

import json
import os
import sys

settings = json.loads(sys.argv[1])
os.environ["HOME"] = settings["home"]

import gi

gi.require_version("Gdk", "3.0")
gi.require_version("Gtk", "3.0")
gi.require_version("GtkSource", "4")
from gi.repository import Gdk, Gtk

from gajim.common import app, configpaths
from gajim.common.settings import Settings

configpaths.set_config_root(settings["home"])
configpaths.init()
configpaths.create_paths()
app.settings = Settings()
app.settings.init()
from gajim.gtk.css_config import CSSConfig

app.css_config = CSSConfig()

from gajim.gtk.adhoc import AdHocCommands

from gajim_pages import Answers, show_all


class Gtk3:
    """How GTK 3 shows them."""

    def open(self):
        window = AdHocCommands("account", "xtls.example.test")
        window.show_all()
        return window

    def close(self, window):
        window.destroy()

    def settle(self):
        """Lets GTK lay out and draw."""
        for _ in range(50):
            while Gtk.events_pending():
                Gtk.main_iteration()
            if not Gtk.events_pending():
                Gtk.main_iteration_do(False)

    def screenshot(self, window, path):
        window = window.get_window()
        picture = Gdk.pixbuf_get_from_window(window, 0, 0, window.get_width(), window.get_height())
        picture.savev(path, "png", ["compression"], ["9"])

    def texts(self, widget):
        if not widget.get_mapped():
            return
        if isinstance(widget, Gtk.Label):
            yield "text", widget.get_layout().get_text()
            if widget.get_layout().is_ellipsized():
                yield "fault", f"an ellipsis in {widget.get_layout().get_text()!r}"
        elif isinstance(widget, Gtk.Entry):
            yield "text", widget.get_text()
            if widget.get_layout().get_pixel_size()[0] > widget.get_allocated_width():
                yield "fault", f"{widget.get_text()!r} is wider than its field"
        elif isinstance(widget, Gtk.TextView):
            yield "text", widget.get_buffer().get_property("text")
        elif isinstance(widget, Gtk.ComboBox):
            chosen = widget.get_active_iter()
            yield "text", widget.get_model()[chosen][0] if chosen else ""
        elif isinstance(widget, Gtk.TreeView):
            for row in widget.get_model():
                yield from (("text", value) for value in row if isinstance(value, str))
        if isinstance(widget, Gtk.ScrolledWindow):
            across = widget.get_hadjustment()
            if across.get_upper() > across.get_page_size() + 1:
                yield "fault", "it must be scrolled sideways"
        if isinstance(widget, Gtk.Container):
            children = []
            widget.forall(children.append)
            for child in children:
                yield from self.texts(child)


answers = Answers()
app.get_client = lambda _account: answers
show_all(settings, answers, Gtk3())
