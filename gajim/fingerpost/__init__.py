"""End-to-end encrypted files in Gajim."""

# Gajim takes the first class that it finds here, and cannot read other names before it.
from .plugin import FingerpostPlugin
