"""How the tiny base and the world were made and measured; nothing else uses this."""
