"""A rank that is killed takes the others with it, and all together continue from the checkpoint."""

from tests.distributed.launch import finish, launch, start
from tests.distributed.restart_worker import CHECKPOINT_EVERY, KILLED_AT

WORKER = "tests.distributed.restart_worker"


def test_after_a_kill_of_one_rank_training_continues_as_if_nothing_had_happened(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    expected = launch(WORKER, ranks=2, output=calm)
    process = start(WORKER, "--kill", "--output", killed, ranks=2, log=killed / "log.txt")
    assert finish(process, timeout=300) == 1  # the other rank does not wait for ever
    assert not list(killed.glob("rank-*.json"))
    found = launch(WORKER, ranks=2, output=killed)
    for rank in range(2):
        assert found[rank].pop("began_at") == KILLED_AT // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        assert expected[rank].pop("began_at") == 0
        assert found[rank] == expected[rank]  # thresholds, counts and weights, bit for bit
        name = f"metrics-{rank}.jsonl"
        assert (killed / name).read_text() == (calm / name).read_text()
    assert found[0] == found[1]
