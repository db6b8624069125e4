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

    ENTRY = Gtk.Entry

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

    def is_too_wide(self, entry):
        return entry.get_layout().get_pixel_size()[0] > entry.get_allocated_width()

    def chosen(self, widget):
        if not isinstance(widget, Gtk.ComboBox):
            return None
        row = widget.get_active_iter()
        return widget.get_model()[row][0] if row else ""

    def children(self, widget):
        found = []
        if isinstance(widget, Gtk.Container):
            widget.forall(found.append)
        return found


answers = Answers()
app.get_client = lambda _account: answers
show_all(settings, answers, Gtk3())
