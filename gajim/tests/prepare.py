"""Writes the settings of a Gajim with some accounts: prepare.py JSON. Runs under the Python of that Gajim, as its user."""

import json
import sys
from pathlib import Path

import gi

import gajim

NEW = not gajim.__version__.startswith("1.")
gi.require_version("Gdk", "4.0" if NEW else "3.0")
gi.require_version("Gtk", "4.0" if NEW else "3.0")
gi.require_version("GtkSource", "5" if NEW else "4")

from gajim.common import app, configpaths
from gajim.common.settings import Settings

given = json.loads(sys.argv[1])
configpaths.set_config_root(given["config"])
configpaths.init()
configpaths.create_paths()
settings = app.settings = Settings()
settings.init()
for name in ("use_keyring", "show_notifications", "autoaway", "autoxa", "sounds_on", "check_for_update", "plugins_update_check",
             "plugins_auto_update"):  # fmt: skip
    settings.set(name, False)
for user in given["users"]:
    settings.add_account(user)
    address = {"address": f"{user}@{given['domain']}"} if NEW else {"name": user, "hostname": given["domain"]}
    for name, value in {
        **address, "password": given["password"], "savepass": True, "active": True,
        "use_custom_host": True, "custom_host": given["host"], "custom_port": given["port"], "custom_type": "START TLS",
        "resource": "gajim", "autoconnect": True,
    }.items():  # fmt: skip
        settings.set_account_setting(user, name, value)
for plugin in given["plugins"]:
    settings.set_plugin_setting(plugin, "active", True)
settings.shutdown()
(Path(configpaths.get("CERT_STORE")) / "server.pem").write_text(Path(given["certificate"]).read_text())
