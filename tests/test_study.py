from collections import Counter

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from autoclip.errors import UsageError
from autoclip.sweeps.study import KEY, GoneError, KeyedStudy, look_for, open_storage

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def opened(url, name="sweep"):
    return KeyedStudy(open_storage(url), name, ["a", "b"])


def states(study):
    return Counter(trial.state.name for trial in study.optuna.get_trials(deepcopy=False))


def test_a_study_is_created_once_and_then_continued(url):
    first = opened(url)
    assert first.optuna.metric_names == ["a", "b"]
    assert [direction.name for direction in first.optuna.directions] == ["MINIMIZE", "MINIMIZE"]
    first.add("one", [1.0, 2.0], {})
    assert opened(url).done()["one"].values == [1.0, 2.0]
    assert optuna.study.get_all_study_names(open_storage(url)) == ["sweep"]


def test_an_added_trial_keeps_parameters_attributes_and_constraints(url):
    space = {"form": CategoricalDistribution(["fixed", "none"]), "threshold": FloatDistribution(0.1, 10.0, log=True)}
    params = {"form": "fixed", "threshold": 2.5}
    opened(url).add(
        "one",
        [1.0, 2.0],
        params=params,
        distributions=space,
        user_attrs={"seed": 7},
        constraints={"diverged": 1.0},
    )
    done = opened(url).done()["one"]
    assert (done.params, done.distributions) == (params, space)
    assert done.user_attrs == {"seed": 7, KEY: "one"}
    assert done.constraints == {"diverged": 1.0}
    assert opened(url).optuna.best_trials == []


def test_a_trial_that_was_asked_for_goes_on_with_its_value_after_its_process_ended(url):
    first = opened(url).ask("one", RandomSampler(seed=0))
    value = first.suggest_float("x", 0, 1)
    study = opened(url)
    assert study.done() == {}
    again = study.ask("one", RandomSampler(seed=1))
    assert (again.number, again.suggest_float("x", 0, 1)) == (first.number, value)
    assert study.ask("two", RandomSampler(seed=1)).suggest_float("x", 0, 1) != value
    study.tell(again, [1.0, 2.0], user_attrs={"seeds": 3}, constraints={"diverged": 0.0})
    done = opened(url).done()["one"]
    assert (done.values, done.params, done.constraints) == ([1.0, 2.0], {"x": value}, {"diverged": 0.0})
    assert done.user_attrs == {"seeds": 3, KEY: "one"}
    assert states(study) == {"COMPLETE": 1, "RUNNING": 1}


def test_only_complete_trials_with_a_key_are_done(url):
    study = opened(url)
    study.optuna.tell(study.optuna.ask().number, [1.0, 2.0])
    study.optuna.tell(study.ask("one", RandomSampler()).number, state=TrialState.FAIL)
    assert study.done() == {}


def test_two_studies_in_one_database_do_not_mix(url):
    study, other = opened(url), opened(url, name="sweep: runs")
    study.add("one", [1.0, 2.0], {})
    assert other.done() == {}
    other.add("one", [3.0, 4.0], {})
    assert study.done()["one"].values == [1.0, 2.0]


def test_a_frozen_number_stays_what_it_was_first(url):
    assert opened(url).frozen("reference", 0.25) == 0.25
    assert opened(url).frozen("reference", 0.5) == 0.25


def test_names_with_quotes_and_umlauts_survive(tmp_path):
    url = f"sqlite:///{tmp_path / 'stüdy.db'}"
    name, key = "it's \"größer\" 'n' this; DROP TABLE trials", "fixed 1, seed 0: ü"
    opened(url, name=name).add(key, [1.0, 2.0], {})
    assert list(opened(url, name=name).done()) == [key]


def test_a_file_that_is_gone_or_empty_is_told_and_a_server_is_not_looked_for(url, tmp_path):
    with pytest.raises(GoneError, match=r"study\.db is gone"):
        look_for(url)
    (tmp_path / "study.db").touch()
    with pytest.raises(GoneError, match=r"study\.db is gone"):
        look_for(url)
    opened(url)
    look_for(url)
    look_for("postgresql+psycopg://user:secret@host/database")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db"]


@pytest.mark.parametrize(
    "bad",
    [
        "sqlite:////no/such/folder/study.db",
        "nonsense://somewhere/study",
        "sqlite+nonsense:///study.db",
        "not a url",
        "",
        "postgresql+psycopg2://nobody@127.0.0.1:1/none",
        "postgresql://nobody@127.0.0.1:port/none",
    ],
)
def test_a_storage_that_cannot_be_opened_is_a_usage_error(bad):
    with pytest.raises(UsageError, match="cannot open the storage") as error:
        open_storage(bad)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_database_is_a_usage_error(tmp_path):
    (tmp_path / "study.db").write_text("not a database " * 100)
    with pytest.raises(UsageError, match="not a database"):
        open_storage(f"sqlite:///{tmp_path / 'study.db'}")
