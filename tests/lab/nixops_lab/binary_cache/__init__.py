"""A binary cache and a server of sources on the lab's network: what machines and operator fetch from."""
