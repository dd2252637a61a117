"""The outside: web engines, pages, large models, record and replay; the world as a server."""
