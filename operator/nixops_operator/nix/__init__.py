"""Pure Nix knowledge: expressions (shipped as data), requests into expressions, error texts into messages. No processes
here."""
