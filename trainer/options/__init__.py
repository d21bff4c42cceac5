"""The trainer's options: definitions, presets and checks."""
