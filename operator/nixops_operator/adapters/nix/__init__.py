"""Nix through its own programs, in sandboxes."""
