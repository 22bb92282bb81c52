"""Living and ended processes of this computer."""

import os
import subprocess
import sys

from dreambooth_jax import processes


def test_a_process_that_ended_unnoticed_is_no_living_one() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its parent has not waited
        os.kill(process.pid, 0)  # it has its number still
        assert not processes.lives(process.pid)
    own = os.getpid()
    assert processes.lives(own) and processes.lives(own, began=processes.started(own))
    assert not processes.lives(own, began="another boot/1")
