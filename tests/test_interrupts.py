"""Ctrl-C reaches the command wherever Python happens to be when it comes."""

import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from musc.cli import main
from musc.cli.interrupts import heard, listening, lost


class Gone:
    """Ctrl-C comes while this is deleted, where Python ignores what is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)


def in_a_callback():
    Gone()
    assert lost()


def masked():
    with suppress(KeyboardInterrupt):  # as numpy does with whatever __array__ raises
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("lose", [in_a_callback, masked])
def test_one_that_was_lost_comes_again(lose, capsys):
    begun = time.monotonic()

    def run():
        with listening():
            lose()
            time.sleep(4)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert time.monotonic() - begun < 3
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_was_heard_does_not():
    with listening():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            heard()
        time.sleep(0.1)
    assert not lost()


def test_who_ignores_it_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for what runs behind `&`
    try:
        with listening():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_in_its_place_is_no_fault(monkeypatch, capsys, tmp_path):
    def fails(*_):
        masked()
        raise RuntimeError("could not determine the shape")

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", fails)
        code = main(["datasets", str(tmp_path)])
    assert code == 130
    said = capsys.readouterr().err
    assert "interrupted" in said
    assert "fault" not in said


def test_at_the_very_start_it_shows_no_traceback():
    program = (
        "import signal, sys, runpy\n"
        "def find(*_):\n    signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, type('F', (), {'find_spec': staticmethod("
        "lambda name, *_: find() if name == 'musc.cli' else None)}))\n"
        "from musc.__main__ import main\nsys.exit(main())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert found.stderr.split() == ["musc:", "interrupted."]
    assert found.returncode in (130, -signal.SIGINT)
