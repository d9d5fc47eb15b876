"""The run-time type checker of the test suite: beartype, with an int allowed where a float is asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
