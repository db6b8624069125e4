"""What the plugin needs of this Gajim, and of its GTK."""

from gi.repository import Gtk

if Gtk.get_major_version() == 3:
    from .gajim1 import ChatMenu, attract, children, choose_files, complain, keep, notify, put, show, style, when_closed
else:
    from .gajim2 import ChatMenu, attract, children, choose_files, complain, keep, notify, put, show, style, when_closed

__all__ = ["ChatMenu", "attract", "children", "choose_files", "complain", "keep", "notify", "put", "show", "style", "when_closed"]
