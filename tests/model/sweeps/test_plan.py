from pathlib import Path

import pytest

from showtell.model.sweeps.plan import Plan, read_plan
from showtell.pipeline.stage.errors import ConfigError

GRID = '[train]\ndataset = "scenes"\n[grid]\n'


def plan_of(folder: Path, content: str, name: str = "sweep.toml") -> Plan:
    (folder / name).write_text(content, "utf-8")
    return read_plan(folder / name, folder / "data")


def runs_of(plan: Plan) -> list[str]:
    settings = [runs for c in plan.combinations for runs in plan.runs_of(c)]
    return [plan.run_dir(values).name for values in settings]


def test_grid_has_all_combinations_and_each_run_is_named_after_its_values(tmp_path) -> None:
    plan = plan_of(tmp_path, GRID + 'cell = ["gru", "lstm"]\nseed = [0, 1]\ndropout = [0, 0.5]\n')
    assert runs_of(plan) == [
        f"sweep-cell={cell}-dropout={dropout}-seed={seed}"
        for cell in ("gru", "lstm")
        for dropout in (0.0, 0.5)
        for seed in (0, 1)
    ]
    config = plan.train_config({"cell": "lstm", "dropout": 0.5, "seed": 1})
    assert (config.dataset, config.cell, config.dropout, config.seed) == ("scenes", "lstm", 0.5, 1)
    assert config.run == "sweep-cell=lstm-dropout=0.5-seed=1"
    assert set(config.given) == {"dataset", "cell", "dropout", "seed"}


def test_names_do_not_depend_on_the_order_in_the_file(tmp_path) -> None:
    one = plan_of(tmp_path, GRID + 'cell = ["gru"]\nseed = [0]\nembed-size = [8]\n')
    other = plan_of(tmp_path, GRID + 'embed_size = [8, 16]\nseed = [0]\ncell = ["gru", "lstm"]\n')
    assert set(runs_of(one)) < set(runs_of(other))


def test_equal_values_are_one_run(tmp_path) -> None:
    plan = plan_of(tmp_path, GRID + "learning-rate = [1, 1.0, 0.5]\n")
    assert runs_of(plan) == ["sweep-learning-rate=1.0", "sweep-learning-rate=0.5"]


def test_names_of_files_become_names_of_folders(tmp_path) -> None:
    plan = plan_of(tmp_path, GRID + 'word-vectors = ["vectors/glove 50d+.txt"]\n')
    assert runs_of(plan) == ["sweep-word-vectors=vectors_glove_50d_.txt"]


def test_preset_fills_in_options_that_are_not_given(tmp_path) -> None:
    plan = plan_of(tmp_path, GRID + 'preset = ["views", "soft-attention"]\nema = [0.5]\n')
    config = plan.train_config({"preset": "soft-attention", "ema": 0.5})
    assert (config.attention, config.attention_size, config.ema) == ("soft", 128, 0.5)


def test_search_rounds_to_short_numbers_inside_the_range(tmp_path) -> None:
    plan = plan_of(
        tmp_path,
        "[search]\ntrials = 5\nlearning-rate = { low = 1.2345e-4, high = 1e-2, log = true }\n"
        "num-layers = { low = 1, high = 3 }\n",
    )
    rate = plan.search["learning_rate"]
    assert [rate.round(x) for x in (0.00123456, 1.2345e-4, 9.9999e-3)] == [
        0.00123,
        1.2345e-4,
        0.01,
    ]
    layers = plan.search["num_layers"].round(2)
    assert (layers, type(layers), plan.num_trials) == (2, int, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has nothing to vary: add [grid] with seed = [0, 1, 2]."),
        ("[grid]\n", "has nothing to vary"),
        ("[gird]\nseed = [0]", "'gird' is not a table of a sweep; expected [train], [grid] and "),
        ("[gird]\nseed = [0]", "Did you mean 'grid'?"),
        ("epochs = 3", "'epochs' is not a table of a sweep"),
        ("[grid]\ncells = ['gru']", "[grid]: 'cells' is not an option of 'showtell train'. Did"),
        (
            "[grid]\ncell = ['gur']",
            "[grid]: --cell must be one of gru, lstm, rnn, transformer, got 'gur'.",
        ),
        ("[grid]\nseed = ['a']", "[grid]: --seed must be an integer, got 'a'."),
        ("[grid]\nseed = 3", "[grid]: seed must be a list of values, such as seed = [3]."),
        ("[grid]\nseed = []", "[grid]: seed must be a list of values, such as seed = [0, 1, 2]."),
        ("[train]\nepochs = 'x'\n[grid]\nseed = [0]", "[train]: --epochs must be an integer"),
        ("[train]\nrun = 'x'\n[grid]\nseed = [0]", "[train]: run cannot be set"),
        ("[grid]\nresume = [true]", "[grid]: resume cannot be set"),
        ("[grid]\nmonitor = ['CIDEr']", "[grid]: monitor belongs in [train]"),
        ("[train]\nseed = 1\n[grid]\nseed = [0]", "seed is both in [train] and in [grid]."),
        ("[grid]\nscst = [true]\n", "--scst: --scst continues the training of a run; add --init"),
        ("[grid]\nattention-size = [8]\n", "--attention-size only applies with --attention"),
        ("[search]\ndropout = { low = 0, high = 0.5 }", "such as trials = 20."),
        ("[search]\ntrials = 2", "has nothing to vary"),
        ("[search]\ntrials = 2\ndropout = [0, 1]", "[search]: dropout must be a range, such as"),
        ("[search]\ntrials = 2\ndropout = {low = 0.5, high = 0.1}", "low must be below high"),
        ("[search]\ntrials = 2\ndropout = {low = 0, high = 1}", "--dropout must be at least 0 and"),
        ("[search]\ntrials = 2\ndropout = {low = 0, high = 0.9, log = true}", "above 0 with log"),
        ("[search]\ntrials = 2\nseed = {low = 0, high = 9}", "seed belongs in [grid]."),
        ("[search]\ntrials = 2\ncell = {low = 'gru', high = 'rnn'}", "cell belongs in [grid]."),
        ("[grid]\nword-vectors = ['a/b', 'a b']", "two runs would have the name sweep-word-ve"),
        (f"[grid]\nword-vectors = ['{'x' * 200}']", "is longer than 200 bytes."),
        ("grid", "is not a TOML file"),
    ],
)
def test_mistake_in_the_file_is_one_sentence(tmp_path, content: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, content)
    assert message in str(error.value)
    assert str(tmp_path / "sweep.toml") in str(error.value)


def test_file_must_exist_and_have_the_name_of_a_run(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"FILE .*nothing\.toml cannot be read: No such file"):
        read_plan(tmp_path / "nothing.toml", tmp_path)
    with pytest.raises(ConfigError, match=r"the name of a sweep must not contain '\+'"):
        plan_of(tmp_path, GRID + "seed = [0]", name="a+b.toml")
