"""The learning half of Adaptide: tokenizer, base, window updates, evaluation, gate. Imports service, never the reverse."""
