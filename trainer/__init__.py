"""The learning half of Adaptide: tokenizer, base, updates, evaluation, gate. Imports service, never the reverse."""
