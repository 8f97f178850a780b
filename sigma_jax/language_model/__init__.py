"""Asks a language model what people say when they want things of a catalogue."""
