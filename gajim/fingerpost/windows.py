"""The two windows: transfers, and keys. In GTK 3 and in GTK 4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gi.repository import Gio, GLib, Gtk, Pango

from .attention import Refusals, surplus
from .fingerpost_core.elements import Print
from .fingerpost_core.errors import XtlsError
from .fingerpost_core.files import visible
from .fingerpost_core.tls import best
from .standing import Standing, text
from .toolkit import children, complain, keep, put, show, style
from .transfer import Phase, Transfer

if TYPE_CHECKING:
    from .account import Fingerpost
    from .plugin import FingerpostPlugin

MAX_TEXT = 300
"""Characters of an error that are shown."""


def _column(spacing: int, margin: int = 0) -> Gtk.Box:
    return Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=spacing, margin_top=margin, margin_bottom=margin,
                   margin_start=margin, margin_end=margin)  # fmt: skip


def _label(text: str = "", *styles: str, selectable: bool = False) -> Gtk.Label:
    label = Gtk.Label(label=text, xalign=0, wrap=True, wrap_mode=Pango.WrapMode.WORD_CHAR, selectable=selectable)
    # Otherwise a selectable label takes the focus, and shows its whole text as selected.
    label.set_can_focus(False)
    label.set_attributes(_attributes())
    for name in styles:
        style(label, name)
    return label


def _monospace(label: Gtk.Label, scale: float) -> None:
    attributes = _attributes()
    attributes.insert(Pango.attr_family_new("monospace"))
    attributes.insert(Pango.attr_scale_new(scale))
    label.set_attributes(attributes)


def _attributes() -> Pango.AttrList:
    attributes = Pango.AttrList()
    # A hyphen where a long address is broken would look like a part of it.
    attributes.insert(Pango.attr_insert_hyphens_new(False))
    return attributes


def _of_stranger(error: XtlsError | None) -> str:
    """What an error says. Peers write parts of it."""
    said = visible(str(error))
    return said if len(said) <= MAX_TEXT else said[:MAX_TEXT] + "…"


def lines(fingerprint: Print) -> str:
    """A fingerprint in two lines."""
    digits = str(fingerprint)
    return f"{digits[:48]}\n{digits[48:]}"


class TransferRow(Gtk.ListBoxRow):
    """A transfer: what it is, whose key it is, the digits, how far it is, and what the user can do."""

    def __init__(self, window: TransfersWindow, transfer: Transfer, stranger: bool):
        Gtk.ListBoxRow.__init__(self, activatable=False, selectable=False)
        self._window, self.transfer, self._stranger = window, transfer, transfer.incoming and stranger
        box = _column(6, margin=12)
        put(self, box)
        self.title = _label("", "bold")
        self.peer_note = _label(f"{transfer.peer} is not one of your contacts.", "warning-color")
        self.key = _label()
        self.fingerprint = _label(selectable=True)
        _monospace(self.fingerprint, 0.85)
        self.question = _label()
        self.digits = _label(selectable=True)
        _monospace(self.digits, 2)
        self.progress = Gtk.ProgressBar(show_text=True)
        self.status = _label("", "dim-label")
        self.accept = Gtk.Button(label="Accept")
        self.decline = Gtk.Button(label="Decline")
        self.same = Gtk.Button(label="The Digits Are the Same")
        self.different = Gtk.Button(label="They Differ")
        self.cancel = Gtk.Button(label="Cancel")
        self.open = Gtk.Button(label="Open Directory")
        self.accept.connect("clicked", lambda _: transfer.accept(window.directory()))
        self.decline.connect("clicked", lambda _: transfer.cancel())
        self.same.connect("clicked", lambda _: transfer.confirm(True))
        self.different.connect("clicked", lambda _: transfer.confirm(False))
        self.cancel.connect("clicked", lambda _: transfer.cancel())
        self.open.connect("clicked", self._open_directory)
        for button in (self.accept, self.same):
            style(button, "suggested-action")
        buttons = Gtk.Box(spacing=6, halign=Gtk.Align.END)
        for button in (self.open, self.cancel, self.decline, self.accept, self.different, self.same):
            put(buttons, button)
        for part in (self.title, self.peer_note, self.key, self.fingerprint, self.question, self.digits, self.progress,
                     self.status, buttons):  # fmt: skip
            put(box, part)
        show(self)
        self._shown: Phase | None = None
        self.update()

    def update(self) -> None:
        transfer, phase = self.transfer, self.transfer.phase
        self.progress.set_fraction(transfer.moved / transfer.size if transfer.size else 0)
        self.progress.set_text(f"{GLib.format_size(transfer.moved)} of {GLib.format_size(transfer.size)}")
        if phase is self._shown is Phase.MOVING:
            # Thousands of times in a large file.
            return
        self._shown = phase
        size = f" ({GLib.format_size(transfer.size)})" if transfer.size else ""
        way = "from" if transfer.incoming else "to"
        own = ""
        if self._window.has_several_accounts():
            own = f" (your account {transfer.account.jid.partition('/')[0]})"
        self.title.set_text(f"{transfer.name}{size} {way} {transfer.peer}{own}")
        standing = transfer.standing
        for kind in ("success-color", "warning-color", "error-color"):
            style(self.key, kind, False)
        if standing is not None:
            self.key.set_text(text(standing, transfer.peer, transfer.assurance))
            # The registry's word is no proof: only a key that the user has accepted is green.
            colors = {Standing.REMEMBERED: "success-color", Standing.UNKNOWN: "warning-color", Standing.EXPIRED: "warning-color"}
            if standing.refused or standing in colors:
                style(self.key, colors.get(standing, "error-color"))
        if transfer.fingerprint is not None:
            self.fingerprint.set_text(lines(transfer.fingerprint))
        comparing = phase is Phase.COMPARING
        if comparing:
            who = "you have" if transfer.initiator == transfer.account.jid.partition("/")[0] else f"{transfer.initiator} has"
            what = "these digits" if transfer.digits else "this fingerprint"
            self.question.set_text(
                f"Ask {transfer.peer}, by telephone for example: do they see {what}, in a session that {who} started? "
                "If so, nobody is between you."
            )
        self.digits.set_text(transfer.digits or "")
        self.status.set_text(self._status())
        refused = standing is not None and standing.refused
        for part, shown in (
            (self.key, standing is not None), (self.fingerprint, transfer.fingerprint is not None and phase is not Phase.DONE),
            (self.question, comparing), (self.digits, comparing and bool(transfer.digits)),
            (self.progress, phase is Phase.MOVING), (self.accept, phase is Phase.OFFERED and not refused),
            (self.decline, phase is Phase.OFFERED), (self.same, comparing), (self.different, comparing),
            (self.cancel, not transfer.over and phase not in (Phase.OFFERED, Phase.COMPARING)),
            (self.open, phase is Phase.DONE and transfer.incoming),
            (self.peer_note, self._stranger and not transfer.over),
        ):  # fmt: skip
            part.set_visible(shown)

    def _status(self) -> str:
        transfer = self.transfer
        if transfer.phase is Phase.DONE:
            if transfer.incoming:
                return f"Received whole: {transfer.path}"
            return f"Sent. {transfer.peer} has confirmed the whole file."
        if transfer.phase is Phase.ENDED:
            return f"Ended: {_of_stranger(transfer.error)}"
        if transfer.phase is Phase.MOVING:
            return transfer.warning or ""
        if transfer.phase is Phase.OFFERED:
            return "They want to send you this file, end-to-end encrypted."
        return transfer.phase.value.capitalize() + "…"

    def _open_directory(self, _button: Gtk.Button) -> None:
        if self.transfer.path is not None:
            Gio.AppInfo.launch_default_for_uri(self.transfer.path.parent.as_uri())


class RefusalRow(Gtk.ListBoxRow):
    """The offers of a peer that were refused before anybody was asked: how many, and why the last one."""

    def __init__(self, peer: str):
        Gtk.ListBoxRow.__init__(self, activatable=False, selectable=False)
        self.peer = peer
        box = _column(6, margin=12)
        self.title, self.reason = _label("", "bold"), _label("", "error-color")
        put(box, self.title)
        put(box, self.reason)
        put(self, box)
        show(self)


class TransfersWindow(Gtk.Window):
    """All transfers, the newest first."""

    def __init__(self, plugin: FingerpostPlugin):
        Gtk.Window.__init__(self, title="End-to-End Encrypted Files", default_width=560, default_height=420)
        self._plugin = plugin
        self._refusals = Refusals()
        self.list = Gtk.ListBox(selection_mode=Gtk.SelectionMode.NONE)
        nothing = _label("No transfers. Send a file from the menu of a chat.", "dim-label")
        show(nothing)
        self.list.set_placeholder(nothing)
        scrolled = Gtk.ScrolledWindow(hscrollbar_policy=Gtk.PolicyType.NEVER)
        put(scrolled, self.list)
        put(self, scrolled)
        show(scrolled)
        keep(self)

    def directory(self) -> Path:
        return self._plugin.directory()

    def has_several_accounts(self) -> bool:
        return len(self._plugin.accounts()) > 1

    def rows(self) -> list[Any]:
        # In GTK 4 the placeholder is a child, too.
        return [child for child in children(self.list) if isinstance(child, Gtk.ListBoxRow)]

    def show_transfer(self, transfer: Transfer, stranger: bool) -> bool:
        """Shows a transfer as it is now; whether it is a new one."""
        for row in self.rows():
            if isinstance(row, TransferRow) and row.transfer is transfer:
                row.update()
                return False
        self.list.prepend(TransferRow(self, transfer, stranger))
        self._tidy()
        return True

    def show_refusal(self, peer: str, error: XtlsError, first: bool) -> None:
        """Shows an offer that was refused before anybody was asked. `first` puts its peer's row before all others."""
        self._refusals.add(peer)
        rows = {row.peer: row for row in self.rows() if isinstance(row, RefusalRow)}
        for other in [other for other in rows if other not in self._refusals]:
            self.list.remove(rows.pop(other))
        row = rows.get(peer)
        if row is not None and first:
            self.list.remove(row)
            row = None
        if row is None:
            row = RefusalRow(peer)
            self.list.prepend(row)
        row.title.set_text(self._refusals.text(peer))
        row.reason.set_text(_of_stranger(error))

    def _tidy(self) -> None:
        for row in surplus((row, row.transfer) for row in self.rows() if isinstance(row, TransferRow)):
            self.list.remove(row)


class KeysWindow(Gtk.Window):
    """The own key of each account, its component, and the keys of peers that the user has accepted."""

    def __init__(self, plugin: FingerpostPlugin, parent: Gtk.Window | None = None):
        Gtk.Window.__init__(self, title="Keys for End-to-End Encrypted Files", default_width=600, default_height=480)
        # Newer Gajims have windows that are not GTK's.
        if isinstance(parent, Gtk.Window):
            self.set_transient_for(parent)
        self._plugin = plugin
        self._box = _column(18, margin=18)
        scrolled = Gtk.ScrolledWindow(hscrollbar_policy=Gtk.PolicyType.NEVER)
        put(scrolled, self._box)
        put(self, scrolled)
        self.refresh()

    def refresh(self) -> None:
        for child in children(self._box):
            self._box.remove(child)
        for account in self._plugin.accounts():
            put(self._box, AccountKeys(self, self._plugin, account))
        if not best().exports:
            put(self._box, _label("pyOpenSSL is not installed: with a new key you compare the fingerprint, not twelve digits.", "dim-label"))
        show(self)


class AccountKeys(Gtk.Box):
    def __init__(self, window: KeysWindow, plugin: FingerpostPlugin, account: Fingerpost):
        Gtk.Box.__init__(self, orientation=Gtk.Orientation.VERTICAL, spacing=6)
        self._window, self.account = window, account
        put(self, _label(account.bare, "bold"))
        line = Gtk.Box(spacing=6)
        self.component = Gtk.Entry(text=account.chosen, placeholder_text=account.broker or "none was found", hexpand=True)
        use = Gtk.Button(label="Use")
        use.connect("clicked", lambda _: plugin.choose(account, self.component.get_text().strip()))
        put(line, Gtk.Label(label="Component"))
        put(line, self.component)
        put(line, use)
        put(self, line)

        put(self, _label("Your key in this Gajim"))
        own = _label(lines(account.identity.fingerprint), selectable=True)
        _monospace(own, 0.85)
        put(self, own)
        states = {None: "The registry was not reached yet.", "": "The registry does not have it: peers are warned, or refuse it if you have registered other keys.",
                  "asserted": "It is registered, but not proven.", "proven": "It is registered and proven.",
                  "attested": "It is registered, and an administrator vouches for it."}  # fmt: skip
        self.state = _label(states.get(account.registered, f"In the registry it is {account.registered}."))
        self.register = Gtk.Button(label="Register", halign=Gtk.Align.START)
        self.register.connect("clicked", self._register)
        self.register.set_sensitive(bool(account.broker) and account.registered in ("", "asserted"))
        put(self, self.state)
        put(self, self.register)

        known = account.trust.peers()
        put(self, _label("Keys that you have accepted" if known else "You have accepted no keys."))
        self.removals: dict[tuple[str, str], Gtk.Button] = {}
        for jid, fingerprint in known:
            row = Gtk.Box(spacing=12)
            text_of_key = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, hexpand=True)
            printed = _label(lines(fingerprint), selectable=True)
            _monospace(printed, 0.85)
            put(text_of_key, _label(jid))
            put(text_of_key, printed)
            remove = Gtk.Button(label="Remove", valign=Gtk.Align.CENTER)
            remove.set_tooltip_text("The next key of this peer is a new one: you compare the digits again.")
            remove.connect("clicked", self._remove, jid, fingerprint)
            self.removals[jid, str(fingerprint)] = remove
            put(row, text_of_key)
            put(row, remove)
            put(self, row)

    def _register(self, _button: Gtk.Button) -> None:
        self.register.set_sensitive(False)

        def done(error: XtlsError | None) -> None:
            # After success the window shows the new state.
            if error is not None and self.get_parent() is not None:
                self.state.set_text(f"It was not registered: {error}")
                self.register.set_sensitive(True)

        self.account.register_key(done)

    def _remove(self, _button: Gtk.Button, jid: str, fingerprint: Print) -> None:
        try:
            self.account.trust.forget(jid, fingerprint)
        except OSError as error:
            complain("The key was not removed", f"The file of the accepted keys cannot be written: {error.strerror}")
        self._window.refresh()
