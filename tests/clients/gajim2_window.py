"""Shows pages in the window for commands of Gajim 2 (GTK 4, under Xvfb), and looks for every text in it.

Runs under the Python of its Debian. gajim_pages.py has the settings and the report.
"""

import json
import os
import sys

settings = json.loads(sys.argv[1])
os.environ["HOME"] = settings["home"]
os.environ["GSK_RENDERER"] = "cairo"

from gajim.main import _init_translations, gi_require_versions

gi_require_versions()
_init_translations()
from gi.repository import GLib, Graphene, Gtk

from gajim.common import app, configpaths
from gajim.common.settings import Settings

configpaths.set_config_root(settings["home"])
configpaths.init()
configpaths.create_paths()
Gtk.init()
app.settings = Settings(in_memory=True)
app.settings.init()
app.load_css_config()

from gajim.gtk.adhoc import AdHocCommands

from gajim_pages import Answers, show_all


class Gtk4:
    """How GTK 4 shows them."""

    ENTRY = Gtk.Text

    def open(self):
        window = AdHocCommands("account", ["xtls.example.test"])
        # Wider than it opens, 600: there it cuts off a chosen option that is longer than some 35 characters.
        window.window.set_default_size(800, 500)
        return window

    def close(self, window):
        window.close()

    def settle(self):
        """Lets GTK lay out and draw."""
        for _ in range(50):
            while GLib.MainContext.default().iteration(False):
                pass

    def screenshot(self, window, path):
        paintable = Gtk.WidgetPaintable.new(window.window)
        node = None
        # It is drawn later than it is laid out.
        while not node:
            self.settle()
            width, height = window.window.get_width(), window.window.get_height()
            snapshot = Gtk.Snapshot()
            paintable.snapshot(snapshot, width, height)
            node = snapshot.to_node()
        whole = Graphene.Rect().init(0, 0, width, height)
        window.window.get_renderer().render_texture(node, whole).save_to_png(path)

    def is_too_wide(self, entry):
        return entry.create_pango_layout(entry.get_text()).get_pixel_size()[0] > entry.get_width()

    def chosen(self, _widget):
        """None: what is chosen in a list is a label."""
        return None

    def children(self, widget):
        child = widget.get_first_child()
        while child:
            yield child
            child = child.get_next_sibling()


answers = Answers()
app.get_client = lambda _account: answers
show_all(settings, answers, Gtk4())
