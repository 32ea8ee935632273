"""The helpers: the data and its sources, the store, files, saved models, pictures."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import PROJECT, synthetic_images, write_idx
from keras import layers
from matplotlib import colors, pyplot


@contextlib.contextmanager
def refused(util, *words):
    """What is inside must raise InputError: one line that has all of `words`."""
    with pytest.raises(util.InputError) as caught:
        yield
    assert str(caught.value).isprintable()
    assert [word for word in words if str(word) not in str(caught.value)] == []


# --------------------------------------------------------- the data and its sources
def test_last_fifth_of_the_training_images_validates(util, idx_dir):
    parts = util.load_data(idx_dir(train=23, test=7))
    images, labels = synthetic_images(23)
    fifths = (images[:18], labels[:18]), (images[18:], labels[18:])
    for (x, y), (images, labels) in zip(parts, [*fifths, synthetic_images(7)]):
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, np.eye(10)[labels])
        assert (x.dtype, y.dtype) == (np.uint8, np.float32)


def test_real_data_is_split_as_published(util, real_data_dir):
    (_, train), (_, validation), _ = util.load_data(real_data_dir)
    assert (train.sum(0) + validation.sum(0)).tolist() == [6000] * 10
    quick = util.load_data(real_data_dir, quick=True)
    assert [len(labels) for _, labels in quick] == [4800, 1200, 2000]
    first = [util.CLASS_NAMES[i] for i in train[:4].argmax(1)]
    assert first == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]


def test_bad_file_is_named_in_one_line(util, make_idx_dir, tmp_path):
    for number, spoil in (
        (0, Path.unlink),
        (2, lambda it: os.truncate(it, 9999)),
        (0, lambda it: it.write_bytes(it.read_bytes()[:-8] + bytes(8))),  # the checksum
        (1, lambda it: write_idx(it, np.zeros((100, 28, 28)))),  # images for labels
        (1, lambda it: write_idx(it, np.zeros(99))),  # a label is missing
        (3, lambda it: write_idx(it, np.full(100, 10))),  # there is no class 10
    ):
        path = make_idx_dir(tmp_path, 100, 100) / util.DATA_FILES[number]
        spoil(path)
        with refused(util, path.parent if number == 1 else path):
            util.load_data(tmp_path)


@pytest.fixture
def sources(util, monkeypatch, tmp_path, idx_dir):
    """(cache, a folder in place of Keras's host). The cache is empty, apt-get missing."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(util, "DEBIAN_DIR", tmp_path / "debian")
    monkeypatch.setattr(util, "DATA_URL", f"{idx_dir().as_uri()}/")
    monkeypatch.setattr(util, "TIMEOUT", 0.5)
    return tmp_path / "datasets" / "fashion-mnist", idx_dir()


def test_sources_are_tried_in_their_order(util, sources, make_idx_dir, capsys):
    cache, host = sources
    make_idx_dir(util.DEBIAN_DIR)
    make_idx_dir(cache)
    assert util.find_data() == cache
    (cache / util.DATA_FILES[0]).unlink()
    assert util.find_data() == util.DEBIAN_DIR  # the cache has not all files
    shutil.rmtree(util.DEBIAN_DIR)
    (host / util.DATA_FILES[1]).unlink()  # only what is missing is fetched
    assert util.find_data() == cache
    assert set(os.listdir(cache)) == {*util.DATA_FILES}
    said = capsys.readouterr().out
    assert said.count("Fetching") == 1 and f"from {util.DATA_URL}\n" in said


def test_debian_package_is_the_last_resort(util, sources, tmp_path, monkeypatch):
    cache, host = sources
    data = shutil.copytree(host, tmp_path / "package")
    (host / util.DATA_FILES[3]).write_text("<html>Log in</html>")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never answers
        for url in (util.DATA_URL, f"http://127.0.0.1:{silent.getsockname()[1]}/"):
            monkeypatch.setattr(util, "DATA_URL", url)
            tried = cache, util.DEBIAN_DIR, url, util.DEBIAN_PACKAGE
            with refused(util, *tried, "--data-dir", *util.DATA_FILES):
                util.find_data()
            assert util.DATA_FILES[3] not in os.listdir(cache)
    with monkeypatch.context() as patch:
        patch.setattr(keras.utils, "get_file", lambda *_, **__: time.sleep(5))
        patch.setattr(util, "FETCH_LIMIT", 0.1)
        with refused(util, "TimeoutError"):
            util.find_data()
    programs = {
        "apt-get": 'case "$*" in *" download dataset-fashion-mnist") touch it.deb; esac',
        "dpkg-deb": f"[ -f $2 ] && install -D -t $3{util.DEBIAN_DIR} {data}/*",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert util.find_data() == cache
    assert set(os.listdir(cache)) == {*util.DATA_FILES}


# ------------------------------------------------------------------------ the files
def test_store_is_for_one_run_until_that_is_killed(util, tmp_path):
    script = (
        "import importlib, os, pathlib\n"
        "util = importlib.import_module('util-FMNIST')\n"
        f"with util.open_store(pathlib.Path({str(tmp_path)!r})) as folder:\n"
        "    util.keep_trial(folder, 'k' * 32, b'content')\n"
        "    (folder / 'temporary' / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.call([sys.executable, "-c", script], cwd=PROJECT)
    with util.open_store(tmp_path) as folder:
        assert os.listdir(folder / "temporary") == []
        assert [*util.stored_trials(folder)] == ["k" * 32]
        (folder / "temporary" / "new").touch()
        with refused(util, tmp_path.parent, "another run"), util.open_store(tmp_path):
            pytest.fail("two runs at work")
        assert os.listdir(folder / "temporary") == ["new"]  # the first run uses it
    (tmp_path / "lock").write_text("text" * 99)
    with refused(util, "/lock cannot be used", "delete it"), util.open_store(tmp_path):
        pytest.fail("the work began")


def test_damaged_trial_does_not_count_and_is_deleted(util, tmp_path):
    (tmp_path / "mine.h5").touch()
    for damaged in (b"Content", b"contenu", b"conten"):
        path = util.keep_trial(tmp_path, "k" * 32, b"content")
        assert util.stored_trials(tmp_path) == {"k" * 32: path}
        path.write_bytes(damaged)
        assert util.stored_trials(tmp_path) == {}
        assert os.listdir(tmp_path) == ["mine.h5"]


def test_key_changes_with_all_that_makes_a_trial(util, main, make_trial, monkeypatch):
    trial = make_trial()
    others = main.Setting("jackson", True, 0.4, 0.003, 32, 40)
    trials = [trial, trial._replace(seed=1)]
    for name, value in others._asdict().items():
        trials.append(trial._replace(setting=trial.setting._replace(**{name: value})))
    data = synthetic_images(10), synthetic_images(5)
    assert {*util.library_versions()} == {"tensorflow", "keras", "numpy"}
    keys = util.trial_keys(trials, data)
    assert util.trial_keys(trials, (synthetic_images(10), synthetic_images(5))) == keys
    found = {*keys.values()}
    for images, _ in data:
        images[4, 27, 27] += 1
        found.add(util.trial_keys([trial], data)[trial])
    monkeypatch.setattr(util, "library_versions", lambda: {"keras": "4"})
    found.add(util.trial_keys([trial], data)[trial])
    monkeypatch.setattr(util.platform, "machine", lambda: "another")
    found.add(util.trial_keys([trial], data)[trial])
    assert [len(key) for key in found] == [32] * (2 + len(others) + 4)


def test_key_changes_with_the_code_of_its_own_network(util, make_trial, monkeypatch):
    def keys(edited=""):
        monkeypatch.setattr(util, "code_behind", lambda name: (name, name == edited))
        return util.trial_keys(
            [make_trial("tyler"), make_trial("jackson")], ()
        ).values()

    changed = {
        edited: [new != old for new, old in zip(keys(edited), keys())]
        for edited in ("train_trial", "build_tyler", "build_jackson")
    }
    assert changed["train_trial"] == [True, True]
    assert changed["build_tyler"] == [True, False]
    assert changed["build_jackson"] == [False, True]


EDITS = [  # the script, what is replaced there, by what, the functions this changes
    ("model", "# as published", "# as I like", []),  # a comment
    ("main", "Train one network", "Train a network", []),  # a docstring
    ("util", "one hyperparameter moved", "one value moved", []),  # a plot's title
    ("main", "Published accuracies", "They published", []),  # the report
    ("main", "tf.float32) / 255", "tf.float32) / 256", ["train_trial"]),
    ("util", '"beta_2": 0.999', '"beta_2": 0.99', ["train_trial"]),
    ("util", '"batch_input_shape"', '"batch_shape"', ["train_trial"]),
    ("model", "Dense(128", "Dense(127", ["build_tyler"]),
    ("model", "Dense(512", "Dense(511", ["build_jackson"]),
    ("model", "L2_FACTOR = 0.0", "L2_FACTOR = 0.1", ["build_tyler", "build_jackson"]),
]


def test_only_an_edit_of_what_trains_changes_its_code(util, tmp_path, monkeypatch):
    monkeypatch.setattr(util, "__file__", str(tmp_path / "util-FMNIST.py"))
    for script in util.SCRIPTS:
        shutil.copy(PROJECT / script, tmp_path)
    functions = ("train_trial", "build_tyler", "build_jackson")
    code = {name: util.code_behind.__wrapped__(name) for name in functions}
    for script, old, new, changed in EDITS:
        path = tmp_path / f"{script}-FMNIST.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        found = [f for f in functions if util.code_behind.__wrapped__(f) != code[f]]
        assert found == changed, new
        path.write_text(text)


@pytest.mark.parametrize(
    "line", ["L2_FACTOR: float = {}", "L2_FACTOR, N = {}, 1", "L2_FACTOR *= {}"]
)
def test_a_constant_counts_however_it_is_set(util, tmp_path, monkeypatch, line):
    monkeypatch.setattr(util, "__file__", str(tmp_path / "util-FMNIST.py"))
    for script in util.SCRIPTS:
        shutil.copy(PROJECT / script, tmp_path)
    code = set()
    for value in (0.001, 0.5):
        with open(tmp_path / "model-FMNIST.py", "a") as file:
            file.write(line.format(value) + "\n")
        code.add(util.code_behind.__wrapped__("build_tyler"))
    assert len(code) == 2


def test_all_functions_that_run_in_training_are_in_its_code(
    util, main, make_trial, idx_dir
):
    ran = set()

    def note(frame, event, _):
        if os.path.dirname(frame.f_code.co_filename) == str(PROJECT):
            ran.add(frame.f_code.co_name)

    train, validation, _ = util.load_data(idx_dir(20, 10))
    sys.setprofile(note)
    main.train_trial(make_trial(use_regularizer=True), train, validation)
    sys.setprofile(None)
    assert {"train_trial", "build_tyler", "in_keras2_words"} < ran
    code = util.code_behind("train_trial") + util.code_behind("build_tyler")
    assert [f for f in ran if f[0] != "<" and f"def {f}(" not in code] == []  # <lambda>


def test_table_is_whole_and_has_all_digits(util, tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    util.write_csv(path, [{"model": 'a, "b"', "loss": np.float64(1 / 3)}])
    assert os.listdir(tmp_path) == ["table.csv"]
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)  # as if it is killed there
    with pytest.raises(ZeroDivisionError):
        util.write_whole(path, b"new")
    assert path.read_text() == f'model,loss\n"a, ""b""",{1 / 3}\n'


@pytest.mark.filterwarnings("error")
def test_spread_is_that_of_a_sample_of_seeds(util):
    spread = util.mean_and_spread([[1, 5], [2, 5], [6, 5]])
    np.testing.assert_allclose(spread, [[3, 5], [7**0.5, 0], [(7 / 3) ** 0.5, 0]])
    np.testing.assert_equal(util.mean_and_spread([[5]]), ([5], [np.nan], [np.nan]))


# -------------------------------------------------------------------- saved models
def assert_same(network, expected):
    images = np.linspace(0, 1, 7840).reshape(-1, *network.input_shape[1:])
    np.testing.assert_allclose(network(images), expected(images), rtol=1e-4)


def classifier(*shape, last="softmax"):
    image = keras.Input(shape)
    hidden = layers.Dense(8, "gelu", kernel_regularizer="l1")(layers.Flatten()(image))
    return keras.Model(image, layers.Dense(10, last)(layers.Dropout(0.3)(hidden)))


def forge(path, old, new):
    with h5py.File(path, "a") as file:
        text = file.attrs["model_config"]
        assert old in text
        file.attrs["model_config"] = text.replace(old, new)


@pytest.fixture
def saved(util, model, tmp_path):
    """(Tyler with L2, the file that the program makes of it, its history)."""
    network, path = model.build_tyler(use_regularizer=True), tmp_path / "model.h5"
    history = {metric: [i / 7, np.nan] for i, metric in enumerate(util.METRICS)}
    path.write_bytes(util.model_file(network, 0.003, history, {"seed": 7}))
    return network, path, history


def test_saved_model_opens_compiled_and_in_words_of_keras_2(util, saved):
    network, path, history = saved
    runs = util.read_histories([path, path])
    np.testing.assert_equal(runs, {k: [x, x] for k, x in history.items()})
    assert util.read_description(path)["seed"] == 7
    hidden = util.layer_table(network)[1]
    assert hidden == ("hidden_1", "Dense", (128,), "relu L2 0.001", 100_480)
    assert_same(util.load_classifier(path), network)
    assert not util.load_classifier(path).compiled  # a loss may name anything
    loaded = keras.models.load_model(path)
    assert_same(loaded, network)
    assert type(loaded.optimizer) is keras.optimizers.Adam
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.003)
    assert loaded.loss is keras.losses.categorical_crossentropy
    assert loaded.get_compile_config()["metrics"] == ["accuracy"]
    loaded.fit(np.zeros((10, 28, 28)), np.eye(10), verbose=0)
    with h5py.File(path) as file:
        text = file.attrs["model_config"]
        adam = json.loads(file.attrs["training_config"])["optimizer_config"]["config"]
        assert "optimizer_weights" not in file
    assert adam == {"learning_rate": 0.003, **util.ADAM, "amsgrad": False}
    new = "module|registered_name|optional|batch_shape|quantization_config|DTypePolicy"
    assert re.findall(f'"({new})"|": null', text) == []  # Keras 2 knows none of these
    assert {*re.findall('"dtype": ([^,}]*)', text)} == {'"float32"'}
    assert '"batch_input_shape": [null, 28, 28]' in text
    forge(path, '"dtype": "float32", ', "")  # older files leave more to Keras
    forge(path, ', "data_format": "channels_last"', "")
    assert_same(util.load_classifier(path), network)


def test_other_classifiers_load_and_give_probabilities(util, tmp_path):
    path = tmp_path / "other.h5"
    for shape, last in (((28, 28), "softmax"), ((784,), "linear"), ((28, 28, 1), None)):
        network = classifier(*shape, last=last)
        network.save(path)
        assert_same(util.load_classifier(path), network)
    assert util.read_description(path) == {"keras_version": keras.__version__}


def test_trials_use_one_thread_of_the_cpu(util, monkeypatch):
    monkeypatch.setattr(os, "environ", {"KERAS_HOME": "mine", "TF_XLA_FLAGS": "mine"})
    with util.settings_for_everybody():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
        assert os.environ["TF_NUM_INTRAOP_THREADS"] == "1"
        assert os.environ["TF_NUM_INTEROP_THREADS"] == "1"
        assert "TF_XLA_FLAGS" not in os.environ
    assert os.environ["KERAS_HOME"] == "mine"  # the data are there


FUNCTION = '{"class_name": "function", "module": "builtins", "config": "relu"}'
REFUSED = {  # what is done to a valid file, what the message must name
    "other layer": (lambda it: forge(it, '"Flatten"', '"Conv2D"'), "Conv2D"),
    "module": (lambda it: forge(it, '"rate"', '"module": "bad", "rate"'), "bad"),
    "function object": (lambda it: forge(it, '"relu"', FUNCTION), "function"),
    "unknown function": (lambda it: forge(it, '"relu"', r'"bad\n\u001b[31m"'), "bad"),
    "other input": (lambda it: classifier(32, 32).save(it), "(32, 32)"),
    "no weights": (lambda it: h5py.File(it, "a").pop("model_weights"), "model_weights"),
    "archive": (lambda it: it.rename(it.with_suffix(".keras")), "only .h5"),
    "missing": (Path.unlink, "no such file"),
}


@pytest.mark.parametrize("spoil, word", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_in_one_line(util, saved, spoil, word):
    path = saved[1]
    spoil(path)
    path = next(path.parent.iterdir(), path)  # it may have another name now
    with refused(util, path, word):
        util.load_classifier(path)


def test_code_in_a_lambda_layer_never_runs(util, tmp_path):
    path, marker = tmp_path / "model.h5", str(tmp_path / "marker")
    trap = layers.Lambda(lambda x: [x, open(marker, "w").close()][0])
    parts = [layers.Flatten(), trap, layers.Dense(10, "softmax")]
    keras.Sequential([keras.Input((28, 28)), *parts]).save(path)
    os.unlink(marker)  # so the trap works
    with refused(util, path, "lambda"):
        util.load_classifier(path)
    assert not os.path.exists(marker)


# -------------------------------------------------------------------- the pictures
@pytest.fixture
def picture(tmp_path, recwarn):
    """The path where a test must save its figure. Nothing may make a warning."""
    yield tmp_path / "picture.png"
    assert min(pyplot.imread(tmp_path / "picture.png").shape[:2]) > 400  # pixels
    assert recwarn.list == []


def test_architecture_shows_every_layer(util, model, picture):
    figure = util.plot_architecture(model.build_tyler(use_regularizer=True))
    util.save_figure(figure, picture, "a note")
    assert figure.get_supxlabel() == "a note"
    assert "Tyler: 167,818 weights" in figure.get_suptitle()
    bars = figure.axes[0].patches
    assert 2 ** bars[0].get_width() == pytest.approx(784)
    assert bars[-2].get_width() == 7
    assert len({bar.get_facecolor() for bar in bars}) == 3
    assert bars[-2].get_facecolor() == colors.to_rgba(util.ORANGE)  # of the dropout
    texts = sorted(figure.axes[0].texts, key=lambda text: -text.get_position()[1])
    texts = [text.get_text() for text in texts]  # line by line
    assert texts[6:9] == ["128", "Dense relu L2 0.001", "100,480 weights"]
    assert texts[-6:-3] == ["128", "Dropout rate 0.3", ""]
    assert texts[-3:] == ["10", "Dense softmax", "1,290 weights"]


@pytest.mark.parametrize("seeds, words", [(1, "chance"), (3, "3 seeds")])
def test_hyperparameters_show_the_study(
    util, main, picture, seeds, words, monkeypatch, capsys
):
    if seeds > 1:
        monkeypatch.delitem(main.STUDY, "dropout_rate")  # three panels
    names = [*main.STUDY, "epochs"]
    final = main.Setting("tyler", False, 0.3, 0.001, 128, 50)
    pair = [final, final._replace(use_regularizer=True)]
    points = main.study_points(pair)
    random = np.random.default_rng(0)
    runs = {point.setting: random.uniform(0.8, 0.9, (seeds, 50)) for point in points}
    runs[final._replace(learning_rate=0.01)][:] = 0.1
    runs[final._replace(batch_size=512)][:] = np.nan  # it diverged
    histories = {setting: {"val_accuracy": x} for setting, x in runs.items()}
    study = main.study_rows(points, histories)
    for point, row in zip(points, study, strict=True):
        accuracies = runs[point.setting][:, point.epoch - 1]
        gap = util.mean_and_spread(accuracies - runs[point.centre][:, -1])
        expected = [*util.mean_and_spread(accuracies)[:2], gap[0], gap[2], seeds]
        np.testing.assert_equal([*row.values()][3:], expected)
    main.report_study(study)
    lines, half = capsys.readouterr().out.splitlines()[3:], len(study) // 2
    assert max(map(len, lines)) <= 60 and ("chance" in lines[-1]) == (seeds == 1)
    lines = lines[:half]
    fields = ("val_accuracy", "difference", "standard_error")[: 3 if seeds > 1 else 2]
    for line, *pair in zip(lines, study[:half], study[half:], strict=True):
        found = [float(x) for x in re.split("[ ±]+", line)[-2 * len(fields) :]]
        expected = [row[field] for row in pair for field in fields]
        np.testing.assert_allclose(found, expected, atol=6e-5)
    figure = util.plot_hyperparameters(study, final)
    util.save_figure(figure, picture)
    assert words in figure.get_suptitle()
    for name, ax in zip(names, figure.axes, strict=True):
        assert ax.get_xlabel().startswith(name.replace("_", " "))
        drawn = {bars.get_label(): bars for bars in ax.containers}
        for use_regularizer, look in util.LOOKS.items():
            curve = [row for row in study if row["hyperparameter"] == name]
            curve = [row for row in curve if row["use_regularizer"] == use_regularizer]
            line, _, [bars] = drawn[look["label"]]
            assert line.get_color() == look["color"]
            x, y = np.transpose(line.get_xydata())
            assert np.rint(x).tolist() == [*range(len(curve))]
            np.testing.assert_equal(y, [row["val_accuracy"] for row in curve])
            spread = [np.ptp(path.vertices[:, 1]) / 2 for path in bars.get_paths()]
            expected = [row["standard_deviation"] for row in curve]
            np.testing.assert_allclose(spread, expected, atol=1e-9)
        ticks = [text.get_text() for text in ax.get_xticklabels()]
        assert ticks == [f"{row['value']:g}" for row in curve]
        [centre] = [line.get_xdata()[0] for line in ax.lines if line.get_ls() == ":"]
        assert ticks[centre] == f"{getattr(final, name):g}"
    assert figure.axes[0].get_legend()
    limits = {name: ax.get_ylim() for name, ax in zip(names, figure.axes)}
    assert limits.pop("learning_rate")[0] < 0.1  # it would flatten the other panels
    [(low, high)] = {*limits.values()}
    assert 0.7 < low < 0.8 < high < 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_training_shows_every_curve_on_the_same_axes(util, main, picture, seeds):
    names = ("tyler", "tyler", "jackson", "jackson")
    settings = [main.Setting(names[i], i % 2 > 0, 0.3, 0.001, 128, 4) for i in range(4)]
    runs = np.random.default_rng(0).random((4, 4, seeds, 4))
    runs[3, 3, 0, 2:] = np.nan  # it diverged
    histories = {s: dict(zip(util.METRICS, x)) for s, x in zip(settings, runs)}
    figure = util.plot_training(histories)
    util.save_figure(figure, picture)
    assert ("3 seeds" in figure.get_suptitle()) == (seeds == 3)
    panels = {"Tyler": figure.axes[:2], "Jackson": figure.axes[2:]}
    for setting, history in histories.items():
        look = util.LOOKS[setting.use_regularizer]
        name = setting.architecture.title()
        for ax, metric in zip(panels[name], ("accuracy", "loss"), strict=True):
            assert metric in ax.get_ylabel() and ax.get_title() == name
            drawn = {line.get_label(): i for i, line in enumerate(ax.lines)}
            for part, prefix in (("training", ""), ("validation", "val_")):
                i = drawn[f"{part}, {look['label']}"]
                mean, deviation, _ = util.mean_and_spread(history[prefix + metric])
                assert ax.lines[i].get_color() == look["color"]
                np.testing.assert_equal(ax.lines[i].get_xydata(), np.c_[1:5, mean])
                ends = np.append(mean - deviation, mean + deviation)
                paths = ax.collections[i].get_paths()  # of the band, if it has one
                heights = {y for path in paths for y in path.vertices[:, 1]}
                assert heights == {*ends[np.isfinite(ends)]}
    assert figure.axes[0].get_legend()
    assert len({look["linestyle"] for look in util.LOOKS.values()}) == 2
    tyler, jackson = [[ax.get_ylim() for ax in axes] for axes in panels.values()]
    assert tyler == jackson


def test_rows_of_the_confusion_matrix_are_the_true_classes(util, picture):
    labels = np.repeat([0, 1], [400, 1])
    guesses = np.eye(10)[np.repeat([0, 1, 2, 1], [299, 100, 1, 1])]
    figure = util.plot_confusion_matrix("Tyler + L2: 74.81%", labels, guesses)
    util.save_figure(figure, picture)
    [ax] = figure.axes
    assert "true" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_yticklabels()] == [*util.CLASS_NAMES]
    cells = np.reshape([text.get_text() for text in ax.texts], (10, 10))
    assert cells[0].tolist() == ["0.75", "0.25", *[""] * 8]  # 0.0025 is left out
    assert cells[1].tolist() == ["", "1.00", *[""] * 8]


def test_most_confident_mistakes_are_shown(util, picture):
    numbers = np.arange(20)  # every odd prediction is wrong
    labels, guesses = numbers % 10, (numbers + numbers % 2) % 10
    confidence = 0.5 + 0.02 * (7 * numbers % 20)
    probabilities = confidence[:, None] * np.eye(10)[guesses]
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    figure = util.plot_predictions("Jackson", images, labels, probabilities)
    util.save_figure(figure, picture)
    wrong = sorted(numbers[1::2], key=lambda i: -confidence[i])
    for ax, i in zip(figure.axes, [*numbers[:12:2], *wrong[:6]], strict=True):
        np.testing.assert_equal(ax.images[0].get_array(), images[i])
        true, guess = util.CLASS_NAMES[labels[i]], util.CLASS_NAMES[guesses[i]]
        title = f"true: {true}\npredicted: {guess}\nconfidence: {confidence[i]:.1%}"
        assert ax.get_title() == title and ax.images[0].get_cmap().name == "gray"
        assert ax.title.get_color() == (util.RED if i % 2 else "black")
