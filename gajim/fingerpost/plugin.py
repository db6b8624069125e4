"""The plugin: entries in the menu of a chat, windows, and a module for each account."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gajim.common import app
from gajim.common.const import COMMON_FEATURES
from gajim.common.modules.contacts import BareContact
from gajim.plugins import GajimPlugin
from gi.repository import Gio, GLib, Gtk
from nbxmpp.protocol import JID, InvalidJid

from . import account as module
from .account import FEATURES, Fingerpost
from .attention import Notifications
from .fingerpost_core.errors import XtlsError
from .toolkit import ChatMenu, attract, choose_files, complain, notify, when_closed
from .transfer import Phase, Transfer
from .windows import KeysWindow, TransfersWindow

log = logging.getLogger("gajim.p.fingerpost")

SEND, TRANSFERS, KEYS = "fingerpost-send", "fingerpost-transfers", "fingerpost-keys"


class FingerpostPlugin(GajimPlugin):
    def init(self) -> None:
        self.description = "Files with end-to-end TLS"
        self.config_default_values: dict[str, Any] = {"components": ({}, "the component that each account uses, if the user has chosen one")}
        self.config_dialog = self.show_keys
        self.modules = [module]
        self.gui_extension_points = {
            "message_actions_box": (self._connect_box, self._disconnect_box),
            "switch_contact": (self._switch_contact, None),
            "update_caps": (self._update_caps, None),
        }
        Fingerpost.observer = self
        self._actions: Any = None
        self._menu: ChatMenu | None = None
        self._transfers: TransfersWindow | None = None
        self.keys: KeysWindow | None = None
        self._notifications = Notifications()

    @property
    def transfers(self) -> TransfersWindow:
        # Gajim loads plugins before it has windows.
        if self._transfers is None:
            self._transfers = TransfersWindow(self)
        return self._transfers

    def activate(self) -> None:
        for name, kind, act in (
            (SEND, "as", self._send), (TRANSFERS, None, self._show_transfers), (KEYS, None, lambda *_: self.show_keys(app.window)),
        ):  # fmt: skip
            action = Gio.SimpleAction.new(name, None if kind is None else GLib.VariantType(kind))
            action.connect("activate", act)
            app.app.add_action(action)
        for account in self.accounts():
            account.start()
        self._tell_features()

    def deactivate(self) -> None:
        for name in (SEND, TRANSFERS, KEYS):
            app.app.remove_action(name)
        for account in self.accounts():
            account.stop()
        if self._transfers is not None:
            self._transfers.destroy()
            self._transfers = None
        if self.keys is not None:
            self.keys.destroy()
            self.keys = None

    def accounts(self) -> list[Fingerpost]:
        found = []
        for client in app.get_clients():
            try:
                found.append(client.get_module(module.name))
            except KeyError:
                # The account is being removed.
                continue
        return found

    def directory(self) -> Path:
        """Where received files go."""
        chosen = GLib.get_user_special_dir(GLib.UserDirectory.DIRECTORY_DOWNLOAD)
        directory = Path(chosen or Path.home())
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    # --- what the accounts tell

    def chosen_component(self, bare: str) -> str:
        return str(self.config["components"].get(bare, ""))

    def choose(self, account: Fingerpost, component: str) -> None:
        """Keeps the user's choice of a component; an empty one is that of the server."""
        self.config["components"] = {**self.config["components"], account.bare: component}
        account.choose(component)

    def transfer_changed(self, account: Fingerpost, transfer: Transfer) -> None:
        contact = self._is_contact(account, transfer.peer)
        new = self.transfers.show_transfer(transfer, stranger=not contact)
        if transfer.incoming and new:
            if self._notifications.claim(transfer.peer, contact):
                notify(account._account, transfer.peer, f"{transfer.peer} wants to send you a file", transfer.name)
            if contact:
                attract(self.transfers)
        elif transfer.phase is Phase.COMPARING:
            attract(self.transfers)
        if transfer.phase is Phase.DONE and self.keys is not None:
            self.keys.refresh()

    def offer_refused(self, account: Fingerpost, peer: str, error: XtlsError) -> None:
        contact = self._is_contact(account, peer)
        claimed = self._notifications.claim(peer, contact)
        self.transfers.show_refusal(peer, error, first=claimed)
        if claimed:
            notify(account._account, peer, f"An offer of {peer} was refused", "The window “Encrypted Files” says why.")
            if contact:
                attract(self.transfers)

    def account_changed(self, account: Fingerpost) -> None:
        if self.keys is not None:
            self.keys.refresh()

    @staticmethod
    def _is_contact(account: Fingerpost, peer: str) -> bool:
        try:
            jid = JID.from_string(peer)
        except InvalidJid:
            # The component has made it of a stranger's address.
            return False
        return app.get_client(account._account).get_module("Roster").get_item(jid) is not None

    # --- the menu

    def _connect_box(self, actions: Any, box: Gtk.Box) -> None:
        self._actions, self._menu = actions, ChatMenu(box, self._fill)
        # A chat may be shown already.
        if self._contact() is not None:
            self._menu.contact_shown()

    def _disconnect_box(self, _actions: Any, _box: Gtk.Box) -> None:
        if self._menu is not None:
            self._menu.close()
            self._menu = None

    def _switch_contact(self, _contact: Any) -> None:
        if self._menu is not None:
            self._menu.contact_shown()

    def _contact(self) -> Any:
        """The contact whose chat is shown; None if there is none."""
        try:
            return self._actions.get_current_contact()
        except AssertionError:
            return None

    def _fill(self, menu: Gio.Menu) -> None:
        contact = self._contact()
        if not isinstance(contact, BareContact) or contact.is_self:
            return
        section = Gio.Menu()
        send = Gio.MenuItem.new("Send File End-to-End Encrypted…", None)
        send.set_action_and_target_value(f"app.{SEND}", GLib.Variant("as", [contact.account, str(contact.jid)]))
        section.append_item(send)
        section.append("Encrypted Files", f"app.{TRANSFERS}")
        section.append("Keys for Encrypted Files", f"app.{KEYS}")
        menu.append_section(None, section)

    def _update_caps(self, _account: str, features: list[str]) -> None:
        features += [feature for feature in FEATURES if feature not in features and feature not in COMMON_FEATURES]

    def _tell_features(self) -> None:
        for client in app.get_clients():
            client.get_module("Caps").update_caps()

    # --- actions

    def _send(self, _action: Gio.SimpleAction, target: GLib.Variant) -> None:
        name, peer = target.unpack()
        account = app.get_client(name).get_module(module.name)
        if not account.broker:
            complain("No Fingerpost component", "Your server has no Fingerpost component. Name one in “Keys for Encrypted Files”.")
            return
        choose_files(lambda paths: self.send_files(account, peer, paths))

    def send_files(self, account: Fingerpost, peer: str, paths: list[Path]) -> None:
        for path in paths:
            self.transfer_changed(account, account.send_file(peer, path))
        self.transfers.present()

    def _show_transfers(self, *_: Any) -> None:
        self.transfers.present()

    def show_keys(self, parent: Gtk.Window | None) -> None:
        if self.keys is None:
            self.keys = KeysWindow(self, parent)
            when_closed(self.keys, self._keys_closed)
        self.keys.present()

    def _keys_closed(self) -> None:
        self.keys = None
