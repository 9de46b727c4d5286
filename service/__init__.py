"""The online half of Adaptide: HTTP, store, constrained generation, adapter registry."""
