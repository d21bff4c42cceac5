"""PEFT's own test suite, run with LoLDU's configurations in its tables: `make peft-suite`.

Nothing of PEFT's is edited: `rows` is a pytest plugin that puts LoLDU beside LoRA in every
parametrization that has LoRA, `hub` fills an offline cache with tiny models under the names the
tests ask for, and `expected.toml` lists the tests that cannot pass, each with its reason.
"""
