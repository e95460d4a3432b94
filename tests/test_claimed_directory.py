import subprocess
import sys
import time

from autoclip.lab.claimed_directory import claimed, for_seconds

HOLDER = """
import sys, time
from pathlib import Path
from autoclip.lab.claimed_directory import claimed
with claimed(Path(sys.argv[1]), lambda: False) as mine:
    print(mine, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(directory, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory), str(seconds)], stdout=-1, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_a_directory_is_claimed_by_one_process_until_it_ends_however_it_does(tmp_path):
    process = holder(tmp_path, 300)
    with claimed(tmp_path, lambda: False) as mine:
        assert not mine
    began = time.monotonic()
    with claimed(tmp_path, for_seconds(0.3)) as mine:
        assert not mine
    assert 0.3 <= time.monotonic() - began < 5
    process.kill()
    process.communicate()
    with claimed(tmp_path, lambda: False) as mine:
        assert mine
    assert list(tmp_path.iterdir()) == [], "a claim leaves no file"


def test_a_claim_is_waited_for(tmp_path):
    process = holder(tmp_path, 0.5)
    with claimed(tmp_path, for_seconds(60)) as mine:
        assert mine
    process.communicate()


def test_a_claim_is_given_back_with_the_block_and_directories_do_not_mix(tmp_path):
    (tmp_path / "other").mkdir()
    with claimed(tmp_path, lambda: False) as mine, claimed(tmp_path / "other", lambda: False) as other:
        assert mine
        assert other
    with claimed(tmp_path, lambda: False) as mine:
        assert mine
