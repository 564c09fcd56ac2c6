"""nixops-operator: NixOS machines and the EC2 resources under them, kept in line with their declaration."""
