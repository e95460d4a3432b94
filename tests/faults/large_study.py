"""A sweep that is nearly done, with as many trials as wanted, in the layout that the sweep itself writes."""

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from autoclip.lab.config import load_config
from autoclip.sweeps.scoring import Score
from autoclip.sweeps.study import KEY
from autoclip.sweeps.sweep import REFERENCE, SCORES, Sweep

CONFIG = """
name: large
task: {{target: "tests.tiny_task:TinyTask"}}
optimizer: {{kind: sgd, lr: 0.05}}
steps: 12
sweep: {{none: false, thresholds: [{thresholds}], percentiles: [], kinds: [], seeds: [0, 1, 2], lr_multipliers: [1]}}
"""


def made_up_score(candidate: int, seed: int) -> Score:
    """Figures that differ between candidates and seeds; none of them fails."""
    loss = 0.3 + 0.2 * (candidate * 7919 % 1000) / 1000 + 0.01 * seed
    lows = tuple((step, 2.0 / step) for step in range(1, 13))
    return Score(1, seed, 2 * loss, loss, loss, 1.0, False, 0.5, 0, 12, 0.1, 1.0, lows=lows)


def build(directory: Path, candidates: int, unfinished: int) -> Path:
    """Write the configuration and a study whose last few candidates are not trained; return the configuration's path.

    One trial of each study is made by the sweep's own calls; the others are copies of its rows.
    """
    directory.mkdir(parents=True)
    path = directory / "large.yaml"
    path.write_text(CONFIG.format(thresholds=", ".join(f"{0.01 * (1 + one):g}" for one in range(candidates))))
    config = load_config(path)
    database = directory / "out" / "study.db"
    database.parent.mkdir()
    sweep = Sweep(config, directory / "out", f"sqlite:///{database}")
    names = list(sweep.candidates)[: candidates - unfinished]
    scores = {(name, seed): made_up_score(place, seed) for place, name in enumerate(names) for seed in (0, 1, 2)}

    sweep.trials.frozen(REFERENCE, 0.2)
    for seed in (0, 1, 2):
        own = {"candidate": names[0], "seed": seed, SCORES: [asdict(scores[names[0], seed])]}
        sweep.runs.add(f"{names[0]}, seed {seed}", [0.5], user_attrs=own)
    run = sweep.runs.done()[f"{names[0]}, seed 2"]  # the latest: copies are numbered on from it
    sweep.settle()
    (settled,) = sweep.trials.done().values()

    with closing(sqlite3.connect(database)) as connection, connection:
        others = [(name, seed) for name, seed in scores if name != names[0]]
        _copy(
            connection,
            run._trial_id,
            [
                {
                    KEY: f"{name}, seed {seed}",
                    "candidate": name,
                    "seed": seed,
                    SCORES: [asdict(scores[name, seed])],
                }
                for name, seed in others
            ],
        )
        _copy(connection, settled._trial_id, [{KEY: name, "name": name} for name in names[1:]])
    return path


def _copy(connection: sqlite3.Connection, trial: int, attributes: list[dict[str, object]]) -> None:
    """Add a trial for each set of attributes, which replace those of the given trial."""
    study, number = connection.execute("SELECT study_id, number FROM trials WHERE trial_id = ?", (trial,)).fetchone()
    fresh = connection.execute("SELECT max(trial_id) FROM trials").fetchone()[0] + 1
    ids = range(fresh, fresh + len(attributes))
    connection.executemany(
        "INSERT INTO trials SELECT ?, ?, study_id, state, datetime_start, datetime_complete FROM trials "
        "WHERE trial_id = ? AND study_id = ?",
        [(new, number + 1 + place, trial, study) for place, new in enumerate(ids)],
    )
    for table, columns in (
        ("trial_values", "objective, value, value_type"),
        ("trial_params", "param_name, param_value, distribution_json"),
        ("trial_system_attributes", '"key", value_json'),
    ):
        rows = connection.execute(f"SELECT {columns} FROM {table} WHERE trial_id = ?", (trial,)).fetchall()  # noqa: S608
        marks = ", ".join("?" * (1 + columns.count(",") + 1))
        connection.executemany(
            f"INSERT INTO {table} (trial_id, {columns}) VALUES ({marks})",  # noqa: S608
            [(new, *row) for new in ids for row in rows],
        )
    kept = dict(
        connection.execute("SELECT key, value_json FROM trial_user_attributes WHERE trial_id = ?", (trial,)).fetchall()
    )
    connection.executemany(
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
        [
            (new, key, value)
            for new, changed in zip(ids, attributes, strict=True)
            for key, value in (kept | {key: json.dumps(one) for key, one in changed.items()}).items()
        ],
    )
