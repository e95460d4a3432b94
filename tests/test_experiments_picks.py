from experiments.picks import main
from tests.report_runs import write_sweep

POLICIES = {
    "fixed 1": {"kind": "fixed", "threshold": 1.0},
    "fixed 5": {"kind": "fixed", "threshold": 5.0},
    "running_quantile p50": {"kind": "running_quantile", "percentile": 50.0},
}


def test_each_pick_is_told_with_how_often_it_stays_and_how_often_a_race_agrees(tmp_path, capsys):
    losses = {"fixed 1": 1.0, "fixed 5": 1.4, "running_quantile p50": 0.9}
    write_sweep(tmp_path, {name: (POLICIES[name], loss, False) for name, loss in losses.items()})
    main([str(tmp_path)])
    heading, *rows = capsys.readouterr().out.strip().splitlines()
    assert heading == "swept by hand: 3 candidates, 2 seeds; a race trains 83%"  # fixed 5 is beaten with the first
    assert [row.split()[0] for row in rows] == ["fastest", "steadiest", "balanced"]
    for row in rows:
        assert "running_quantile p50" in row
        assert row.endswith("stays 2 of 2, the race agrees in 2 of 2")
