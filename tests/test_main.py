"""The program as its users meet it, and the training behind it."""

import contextlib
import csv
import gc
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import h5py
import joblib
import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

SCRIPT = PROJECT / "main-FMNIST.py"
NETWORKS = ("Tyler", "Tyler + L2", "Jackson", "Jackson + L2")
NAMES = ("tyler_0", "tyler_1", "jackson_0", "jackson_1")
MODELS = {f"model_{name}.h5" for name in NAMES}
TABLES = {"history.csv", "results.csv"}
MATRICES = {f"confusion_matrix_{name}.png" for name in NAMES}
ARCHITECTURES = {"architecture_tyler.png", "architecture_jackson.png"}
PLOTS = {*MATRICES, *ARCHITECTURES, "accuracy_and_loss.png", "predictions.png"}
SCORES = ("loss", "accuracy", "precision", "recall", "f1")
METRICS = ("accuracy", "loss")
SETTING = ("--epochs", 2, "--batch-size", 64, "--seed", 7)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, make_idx_dir):
    """A small data set: 600 images to train on, 150 to validate, 100 to test."""
    return make_idx_dir(tmp_path_factory.mktemp("data"), train=750, test=100)


data = pytest.fixture(lambda util, data_dir: util.load_data(data_dir), scope="session")


# --------------------------------------------------------------- running the program
@contextlib.contextmanager
def started(*arguments, script=SCRIPT, **options):
    """The program as a process with a session of its own, which ends with the block."""
    command = [sys.executable, str(script), *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    options |= {"text": True, "start_new_session": True, "preexec_fn": heed_ctrl_c}
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def heed_ctrl_c():
    """What runs in a shell's background has been told to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finish(process, status=0):
    """What the program says in the end, when no process of it is left."""
    process.wait(timeout=200)
    said = process.communicate(timeout=5)  # workers have these pipes, too, as they live
    return what_a_user_reads(status, process.returncode, *said)


def what_a_user_reads(expected_status, status, output, error):
    """The output, or after a failure the only line of stderr."""
    assert status == expected_status, output + error
    if status > 0:
        [output] = error.splitlines()
    assert error == "" or status  # after kill -9, Python speaks of its semaphores
    return output


def run(*arguments, status=0, **options):
    with started(*arguments, **options) as process:
        return finish(process, status)


@pytest.fixture
def call(main, capsys):
    """call(*arguments, status=0) is like `run`, but in this process."""

    def run_here(*arguments, status=0):
        ended = 0
        heed_ctrl_c()
        try:
            main.main([*map(str, arguments)])
        except SystemExit as stop:
            ended = stop.code
        return what_a_user_reads(status, ended, *capsys.readouterr())

    return run_here


@pytest.fixture
def without_workers(main, util, monkeypatch):
    """Trials are trained in this process. To start workers takes longer than they do."""

    def train(trials, store, data, options, bar):
        for trial, key in trials.items():
            yield trial, util.keep_trial(store, key, main.train_trial(trial, *data))

    monkeypatch.setattr(main, "train_here", train)


@pytest.fixture(scope="session")
def four(data_dir):
    """four(folder) are the arguments of a run of four trials into this folder."""
    arguments = (*SETTING, "--no-sweep", "--data-dir", data_dir)
    return lambda folder: (*arguments, "--output-dir", folder)


def whole_trials(folder):
    """The trials in an output folder whose files are whole: their names say so."""
    paths = folder.glob(".trials/*-*.h5")
    return [p for p in paths if joblib.hash(p.read_bytes()) == p.stem.split("-")[1]]


def wait_for_trials(folder, count, process):
    while len(whole_trials(folder)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def with_startup_code(folder, code):
    """An environment in which every Python process runs this code first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


def rows(path, **fields):
    """The rows of a table in which these fields have these values."""
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    wanted = {field: str(value) for field, value in fields.items()}
    return [row for row in table if wanted.items() <= row.items()]


def column(path, name, **fields):
    return [float(row[name]) for row in rows(path, **fields)]


def names(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    """{path: bytes} of the models, tables and pictures in an output folder."""
    paths = [*folder.glob("models/*"), *folder.glob("plots/*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def assert_same(ours, theirs, files=(*MODELS, *TABLES)):
    """The same weights, histories and tables, to the last byte."""
    for path in [f"models/{name}" for name in files]:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path


# ----------------------------------------------------------------- the trials to train
def test_the_study_moves_one_published_value_at_a_time(main):
    options = main.parse_options([])
    final = main.final_settings(options)
    assert [setting.label for setting in final] == [*NETWORKS]
    assert {setting[2:] for setting in final} == {(0.3, 0.001, 128, 50)}
    points = main.study_points(final)
    assert (options.seed, options.repeats) == (0, 1)
    assert len(points) == 40 and len({*final, *(p.setting for p in points)}) == 28
    moved = {
        "dropout_rate": [0.1, 0.2, 0.3, 0.4, 0.5],
        "learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01],
        "batch_size": [32, 64, 128, 256, 512],
        "epochs": [10, 20, 30, 40, 50],
    }
    for tyler, half in zip(final[:2], (points[:20], points[20:])):
        found = {name: [] for name in moved}
        for point in half:
            found[point.hyperparameter].append(point.value)
            if point.hyperparameter == "epochs":
                assert (point.setting, point.epoch) == (tyler, point.value)
            else:
                moved_setting = {point.hyperparameter: point.value}
                assert point.setting == tyler._replace(**moved_setting)
                assert point.epoch == 50
        assert found == moved


def test_options_reach_the_setting(main):
    named = "--dropout-rate 0.2 --learning-rate 0.002 --batch-size 96 --epochs 7"
    final = main.final_settings(main.parse_options(named.split()))
    assert {setting[2:] for setting in final} == {(0.2, 0.002, 96, 7)}
    values = {"learning_rate": [], "epochs": []}
    for point in main.study_points(final)[:22]:
        values.setdefault(point.hyperparameter, []).append(point.value)
    assert values["learning_rate"] == [0.0001, 0.0003, 0.001, 0.002, 0.003, 0.01]
    assert values["epochs"] == [2, 3, 5, 6, 7]


# ---------------------------------------------------------------------- the training
PUBLISHED = {  # loss and accuracy of the first epochs of seed 0 on the real data
    "tyler_0": ((0.6204, 0.7803), (0.4154, 0.8505)),
    "tyler_1": ((1.0796, 0.7744), (0.7533, 0.8444)),
    "jackson_0": ((0.7830, 0.7286),),
    "jackson_1": ((1.4586, 0.7271),),
}


@pytest.mark.parametrize("name, epochs", PUBLISHED.items(), ids=NAMES)
def test_training_starts_as_published(
    main, util, make_trial, real_data_dir, tmp_path, name, epochs
):
    """Another processor rounds otherwise: 1 %. Without dropout it is 5 % and more."""
    train, validation, test = util.load_data(real_data_dir)
    network, with_l2 = name.split("_")
    values = {"use_regularizer": with_l2 == "1", "batch_size": 128}
    trial = make_trial(network, 0, epochs=len(epochs), **values)
    path = tmp_path / "model.h5"
    path.write_bytes(main.train_trial(trial, train, validation))
    history = {metric: runs[0] for metric, runs in util.read_histories([path]).items()}
    found = np.transpose([history["loss"], history["accuracy"]])
    np.testing.assert_allclose(found, epochs, rtol=0.01)
    assert 0.82 < history["val_accuracy"][-1] < 0.88
    scores, _ = main.test_model(util.load_classifier(path), test)
    assert history["val_accuracy"][-1] - 0.03 < scores["accuracy"] < 0.88


def test_each_epoch_trains_on_all_images_in_a_new_order_and_validates_on_others(
    main, make_trial, data, monkeypatch
):
    orders = []
    (x_train, _), (x_val, _), _ = data

    def run_epoch(images, labels, order, batch_size, training):
        np.testing.assert_array_equal(images, x_train if training else x_val)
        assert sorted(order) == [*range(len(images))]
        if training:
            assert batch_size == 64
            orders.append(tuple(order))
        return 0.5, 0.5

    monkeypatch.setattr(main, "epoch_function", lambda *_: run_epoch)
    for seed in (3, 3, 4):
        main.train_trial(make_trial(seed=seed, epochs=3), *data[:2])
    assert orders[:3] == orders[3:6]
    assert len({tuple(range(600)), *orders}) == 1 + 6


def test_an_edit_after_the_start_keeps_no_trial(main, util, make_trial, data, data_dir):
    """A worker that reads other scripts or data than the run finds another key."""
    for values in ({"seed": 1}, {"dropout_rate": 0.2}):
        keys = util.trial_keys([make_trial(**values)], data[:2])
        options = SimpleNamespace(data_dir=data_dir, quick=False)
        with pytest.raises(util.InputError, match="start"):
            main.train_in_worker(make_trial(), *keys.values(), None, options)


def weights_in(content):
    """The weights in an .h5 file of these bytes."""
    weights = []

    def collect(_, item):
        if isinstance(item, h5py.Dataset):
            weights.append(item[()].tobytes())

    with h5py.File(io.BytesIO(content)) as file:
        file["model_weights"].visititems(collect)
    return b"".join(weights)


def test_each_value_of_a_trial_matters_and_nothing_else(main, make_trial, data):
    changes = (
        {}, {"seed": 1}, {"use_regularizer": True}, {"dropout_rate": 0.2},
        {"learning_rate": 0.002}, {"batch_size": 60}, {"epochs": 2}, {},
    )  # fmt: skip
    files = [main.train_trial(make_trial(**x), *data[:2]) for x in changes]
    assert len({weights_in(content) for content in files}) == len(files) - 1
    assert files[-1] == files[0]
    assert b'"learning_rate": 0.002' in files[4]  # what `fit` goes on with


def test_each_layer_and_each_step_draws_its_own_numbers(main, make_trial, data):
    jackson, other = [main.build_model(make_trial("jackson", seed)) for seed in (3, 4)]
    states = []
    for layer in (*jackson.layers, *other.layers):
        if layer.name.startswith("dropout"):
            states.append(tuple(layer.seed_generator.state.numpy()))
    assert len(states) == len(set(states)) == 8
    tyler = main.build_model(make_trial())
    kernels = [layer.kernel.numpy().tobytes() for layer in tyler.layers[2:6]]
    assert len(set(kernels)) == 4
    run_epoch = main.epoch_function(jackson, 1e-12)  # no weight moves
    order = np.arange(600, dtype="int32")  # a single batch
    epochs = [run_epoch(*data[0], order, 600, training=True) for _ in range(3)]
    assert len({float(loss) for loss, _ in epochs}) == 3
    validated = [run_epoch(*data[0], order, 600, training=False) for _ in range(3)]
    assert len({float(loss) for loss, _ in validated}) == 1  # no dropout


@pytest.mark.parametrize("name", NAMES)
def test_training_does_the_arithmetic_of_fit(main, util, make_trial, data, name):
    """Without dropout and shuffling, nothing is left to chance."""
    (images, labels), (x_val, y_val), _ = data
    size = {"0": 250, "1": 601}[name[-1]]  # a smaller batch remains; all data are one
    with_l2 = name[-1] == "1"
    trial = make_trial(name[:-2], 3, use_regularizer=with_l2, dropout_rate=0.0)
    ours, theirs = main.build_model(trial), main.build_model(trial)
    theirs.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    theirs.optimizer.learning_rate = 0.0005
    run_epoch, history = main.epoch_function(ours, 0.0005), []
    order, every = np.arange(600, dtype="int32"), np.arange(150, dtype="int32")
    for _ in range(2):
        trained = run_epoch(images, labels, order, size, training=True)
        history.append([*trained, *run_epoch(x_val, y_val, every, 99, training=False)])
    options = {"validation_data": (x_val / np.float32(255), y_val), "shuffle": False}
    fit = theirs.fit(images / np.float32(255), labels, size, 2, verbose=0, **options)
    for one, other in zip(ours.weights, theirs.weights):
        # Adam divides by the gradient's size: where that is nearly 0, rounding shows.
        assert np.abs(one.value - other.value).mean() < 1e-5
    for metric, values in zip(util.METRICS, np.transpose(history)):
        # An image may fall on the other side: 1 of 150.
        np.testing.assert_allclose(values, fit.history[metric], rtol=1e-3, atol=0.007)


def test_a_trial_leaves_nothing_in_its_worker(main, make_trial, data):
    """A model and its graphs refer to each other and would pile up."""
    import keras

    counts = []
    gc.disable()  # so that it is train_trial that collects, not chance
    for _ in range(3):
        main.train_trial(make_trial(), *data[:2])
        counts.append(sum(type(x) is keras.Sequential for x in gc.get_objects()))
    gc.enable()
    assert counts == counts[:1] * 3


@pytest.mark.parametrize("architecture", ["tyler", "jackson"])
def test_a_diverged_model_has_no_scores(
    main, util, make_trial, data, tmp_path, capsys, architecture
):
    """Tyler's loss stays finite: in the graph's ReLU, a NaN becomes 0."""
    trial, path = make_trial(architecture, learning_rate=1e12), tmp_path / "model.h5"
    path.write_bytes(main.train_trial(trial, *data[:2]))
    history = util.read_histories([path])
    assert np.isnan([*history.values()]).all()
    assert main.trial_line(trial, path).endswith("diverged")
    scores, probabilities = main.test_model(util.load_classifier(path), data[2])
    assert np.isnan([*scores.values()]).all()
    main.report_results({trial.setting: [(scores, probabilities)]})
    assert capsys.readouterr().out.count("diverged") == len(SCORES)


# ---------------------------------------------------------------- a whole experiment
@pytest.fixture(scope="session")
def whole(tmp_path_factory, data_dir):
    """The whole experiment beside a copy of the scripts, run from another folder."""
    folder, temporary, elsewhere = map(tmp_path_factory.mktemp, ("project", "t", "e"))
    for script in PROJECT.glob("*.py"):
        shutil.copy(script, folder)
    output = run(
        *SETTING, "--data-dir", data_dir, "--jobs", 2, script=folder / SCRIPT.name,
        cwd=elsewhere, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    left = names(temporary) | names(elsewhere)
    return SimpleNamespace(folder=folder, output=output, left=left)


WITHOUT_POSIX = """
import os, signal, sys
sys.modules |= dict.fromkeys("fcntl resource termios tty pty pwd grp syslog".split())
for name in "fork forkpty setsid getsid getuid geteuid killpg".split():
    delattr(os, name)
for name in "pthread_sigmask pthread_kill sigwait setitimer alarm SIGALRM SIGHUP".split():
    delattr(signal, name)
"""
ODD = {
    "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error",
    "TF_ENABLE_ONEDNN_OPTS": "0", "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    "ONEDNN_MAX_CPU_ISA": "SSE41", "MPLBACKEND": "nonsense", "NO_COLOR": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
}  # fmt: skip


@pytest.fixture(scope="session")
def alone(tmp_path_factory, four):
    """Four trials, one at a time, in an odd environment, into a folder with files of
    the user's."""
    folder, home = map(tmp_path_factory.mktemp, ("alone", "home"))
    for name in ("models/mine.h5", "plots/mine.png", ".trials/mine.h5"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    keras_settings = {"floatx": "nonsense", "image_data_format": "channels_first"}
    (home / "keras.json").write_text(json.dumps(keras_settings))
    environment = {**with_startup_code(home / "startup", WITHOUT_POSIX), **ODD}
    run(*four(folder), "--jobs", 1, env={**environment, "KERAS_HOME": str(home)})
    return folder


@pytest.fixture
def stored(whole, tmp_path):
    """A new output folder with the 28 trials of the whole run, and nothing else."""
    shutil.copytree(whole.folder / ".trials", tmp_path / "out" / ".trials")
    return tmp_path / "out"


def test_the_terminal_tells_the_story_in_narrow_lines(whole):
    lines = whole.output.splitlines()
    assert lines[0] == "28 trials, 0 of them trained before"
    trained, _, rest = whole.output.partition("Testing the models")
    assert len(re.findall("^(?:Tyler|Jackson)", trained, re.MULTILINE)) == 28
    assert trained.splitlines()[3].startswith("Jackson")  # the longest
    study, _, tested = rest.partition("Test results")
    assert tested.split()[:5] == [*SCORES]
    points = re.findall("^(?:dropout|learning|batch|epochs)", study, re.MULTILINE)
    assert len(points) == 17
    assert re.findall(r"^(\w.*?)  +\d", tested, re.MULTILINE) == [*NETWORKS]
    assert "Published" in lines[-3] and str(whole.folder) in lines[-1]
    assert max(map(len, lines[:-1])) <= 60


def test_every_file_is_there_and_no_other(whole, alone):
    scripts = {path.name for path in PROJECT.glob("*.py")}
    assert names(whole.folder) == scripts | {"models", "plots", ".trials"}
    assert names(whole.folder / "models") == MODELS | TABLES | {"study.csv"}
    assert names(whole.folder / "plots") == PLOTS | {"hyperparameters_tyler.png"}
    assert whole.left == set()
    for name in ("models/mine.h5", "plots/mine.png", ".trials/mine.h5"):
        assert (alone / name).read_text() == "mine"
    # One at a time or two, beside other trials, in an odd environment: all the same.
    assert_same(alone, whole.folder, MODELS)


def test_tables_say_what_the_trials_histories_say(whole, util, main):
    models = whole.folder / "models"
    last = {}
    for path in whole.folder.glob(".trials/*.h5"):
        saved, history = util.read_description(path), util.read_histories([path])
        setting = {field: saved[field] for field in main.Setting._fields}
        for name, runs in {**history, "epoch": [(1, 2)]}.items():
            found = column(models / "history.csv", name, **setting, seed=7)
            assert found == [*runs[0]] and len(found) == 2
        label = saved["architecture"].title() + " + L2" * int(saved["use_regularizer"])
        words = [f"{x:g}" for x in [*setting.values()][2:5]]
        line = [re.escape(label), *words, "7", f"{history['val_accuracy'][0, -1]:.4f}"]
        assert re.search("^" + " +".join(line) + " ", whole.output, re.MULTILINE)
        last[tuple(map(str, setting.values()))] = history["val_accuracy"][0]
    assert len(last) == 28 and len(rows(models / "history.csv")) == 56
    centre = {"dropout_rate": "0.3", "learning_rate": "0.001", "batch_size": "64"}
    study = rows(models / "study.csv")
    for row in study:
        network, moved, epoch = ("tyler", row["use_regularizer"]), dict(centre), 2
        if row["hyperparameter"] == "epochs":
            epoch = int(row["value"])
        else:
            moved[row["hyperparameter"]] = row["value"]
        accuracy = last[(*network, *moved.values(), "2")][epoch - 1]
        difference = accuracy - last[(*network, *centre.values(), "2")][1]
        assert float(row["val_accuracy"]) == accuracy
        assert float(row["difference"]) == difference
        assert (row["standard_error"], row["seeds"]) == ("nan", "1")
    assert len(study) == 2 * (5 + 5 + 5 + 2)


def test_plain_keras_measures_the_same_and_trains_on(whole, data, util):
    """A saved model is the one that its name says, and needs nothing of ours."""
    import keras

    images, labels = data[2][0] / 255, data[2][1]
    results = rows(whole.folder / "models/results.csv")
    assert [row["model"] for row in results] == [f"model_{name}" for name in NAMES]
    for row, name in zip(results, NAMES):
        path = whole.folder / f"models/{row['model']}.h5"
        saved = util.read_description(path)
        assert saved["architecture"] == row["architecture"] == name[:-2]
        assert str(saved["use_regularizer"]) == row["use_regularizer"]
        assert row["use_regularizer"] == str(name[-1] == "1")
        assert saved["training_images"] == 600 and saved["seed"] == 7
        model = keras.models.load_model(path)
        loss, accuracy = model.evaluate(images, labels, verbose=0)
        found = [float(row["loss"]), float(row["accuracy"])]
        assert found == pytest.approx([loss, accuracy], rel=1e-4)
    before = model.layers[1].kernel.numpy()
    model.fit(images, labels, verbose=0)
    assert (model.layers[1].kernel.numpy() != before).any()


def test_a_sure_mistake_costs_what_keras_says(main, make_trial, data):
    """Keras takes the loss from the logits; probabilities would be clipped at 1e-7."""
    model = main.build_model(make_trial())
    model.layers[-1].kernel.assign(1000 * model.layers[-1].kernel)
    assert main.test_model(model, data[2])[0]["loss"] > 20


@pytest.fixture
def pictures(util, monkeypatch):
    """{file name: (figure, note)} of what is drawn."""
    drawn, save = {}, util.save_figure

    def record(figure, path, note=""):
        drawn[path.name] = (figure, note)
        save(figure, path, note)

    monkeypatch.setattr(util, "save_figure", record)
    return drawn


def curve(axes, label):
    """The values of a labelled curve, with error bars or without."""
    curves = dict(zip(*reversed(axes.get_legend_handles_labels())))
    return [*getattr(curves[label], "lines", [curves[label]])[0].get_ydata()]


def test_the_same_command_trains_nothing_and_draws_what_the_tables_say(
    stored, whole, call, main, pictures, data_dir, monkeypatch
):
    monkeypatch.setattr(main, "train_here", None)
    output = call(*SETTING, "--data-dir", data_dir, "--output-dir", stored)
    assert output.startswith("28 trials, 28 of them trained before\nTesting")
    assert contents(stored) == contents(whole.folder)
    assert {note for _, note in pictures.values()} == {""}
    models = whole.folder / "models"
    for axes in pictures["hyperparameters_tyler.png"][0].axes:
        name = axes.get_xlabel().split(" (")[0].replace(" ", "_")
        for label, with_l2 in (("without L2", False), ("with L2", True)):
            which = {"hyperparameter": name, "use_regularizer": with_l2}
            expected = column(models / "study.csv", "val_accuracy", **which)
            assert curve(axes, label) == expected != []
    for network, name in zip(NETWORKS, NAMES):
        final = {"architecture": name[:-2], "use_regularizer": name[-1] == "1"}
        final |= {"dropout_rate": 0.3, "learning_rate": 0.001, "batch_size": 64}
        panels = pictures["accuracy_and_loss.png"][0].axes
        half = panels[:2] if name[:-2] == "tyler" else panels[2:]
        for axes, metric in zip(half, METRICS, strict=True):
            assert axes.get_title() == name[:-2].title()
            for part, prefix in (("training", ""), ("validation", "val_")):
                label = f"{part}, {'with' if name[-1] == '1' else 'without'} L2"
                expected = column(models / "history.csv", prefix + metric, **final)
                assert curve(axes, label) == expected != []
        [accuracy] = column(models / "results.csv", "accuracy", model=f"model_{name}")
        figure, _ = pictures[f"confusion_matrix_{name}.png"]
        assert figure.get_suptitle() == f"{network}: test accuracy {accuracy:.2%}"
        diagonal = figure.axes[0].images[0].get_array().diagonal()
        assert np.mean(diagonal) == pytest.approx(accuracy)  # ten images of each class
    tyler = pictures["architecture_tyler.png"][0].axes[0]
    assert not [text for text in tyler.texts if "L2" in text.get_text()]
    titles = {name: figure.get_suptitle() for name, (figure, _) in pictures.items()}
    assert titles["predictions.png"].startswith("Jackson: ")
    assert "Tyler: 167,818" in titles["architecture_tyler.png"]
    assert "Jackson: 575,050" in titles["architecture_jackson.png"]


@pytest.mark.usefixtures("without_workers")
def test_a_quick_run_is_small_and_says_so(
    main, call, util, pictures, real_data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(main, "HERE", tmp_path)
    arguments = ("--no-sweep", "--batch-size", 480, "--data-dir", real_data_dir)
    output = call("--quick", *arguments)
    assert "cannot be compared" in output and str(tmp_path / "quick") in output
    saved = util.read_description(tmp_path / "quick/models/model_tyler_0.h5")
    assert (saved["training_images"], saved["epochs"]) == (4800, 5)
    assert len(rows(tmp_path / "quick/models/history.csv")) == 20
    assert names(tmp_path / "quick/plots") == {*pictures} == PLOTS
    assert all("quick" in note for _, note in pictures.values())


# ------------------------------------------------------------ nothing is trained twice
@pytest.mark.usefixtures("without_workers")
def test_another_seed_trains_that_seed_alone(stored, alone, call, four, pictures):
    """And what is left of an earlier run's study gets another name."""
    for name in ("models/study.csv", "plots/hyperparameters_tyler.png"):
        (stored / name).parent.mkdir()
        (stored / name).write_text("older")
    output = call(*four(stored), "--repeats", 2)
    assert output.startswith("8 trials, 4 of them trained before")
    trained = output.partition("Testing")[0]
    assert re.findall(r"^[TJ].* (\d)$", trained, re.MULTILINE) == [*"5678"]
    assert {note for _, note in pictures.values()} == {""}
    assert len(list(stored.glob(".trials/*.h5"))) == 32
    assert_same(stored, alone, MODELS)  # those of the first seed
    assert names(stored / "models") == MODELS | TABLES | {"older_study.csv"}
    assert names(stored / "plots") == PLOTS | {"older_hyperparameters_tyler.png"}
    assert (stored / "models/older_study.csv").read_text() == "older"
    results = stored / "models/results.csv"
    assert [row["seed"] for row in rows(results)] == ["7", "8"] * 4
    assert rows(results)[::2] == rows(alone / "models/results.csv")
    lines = output.partition("Test results")[2].splitlines()[1:]
    for name, mean, deviation in zip(NAMES, lines[0::2], lines[1::2]):
        values = [column(results, score, model=f"model_{name}") for score in SCORES]
        assert mean.split()[-5:] == [f"{np.mean(x):.4f}" for x in values]
        assert deviation.split() == [f"±{np.std(x, ddof=1):.4f}" for x in values]
        title = pictures[f"confusion_matrix_{name}.png"][0].get_suptitle()
        assert title.endswith(f", seed 7: test accuracy {values[1][0]:.2%}")
    assert len({*column(stored / "models/history.csv", "loss")}) == 4 * 2 * 2
    tyler = column(results, "accuracy", model="model_tyler_0")
    gap = np.subtract(tyler, column(results, "accuracy", model="model_jackson_0"))
    error = np.std(gap, ddof=1) / np.sqrt(2)
    assert f"Tyler - Jackson: {gap.mean():+.4f}, standard error {error:.4f}" in output


# ------------------------------------------------------------------ interrupted runs
def test_ctrl_c_keeps_what_is_trained_and_kill_9_does_too(four, call, alone, tmp_path):
    """Nothing is lost but the trials under way, and the end is the same."""
    with started(*four(tmp_path), "--jobs", 1) as process:
        wait_for_trials(tmp_path, 1, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to every process
        assert "interrupted" in finish(process, status=130)
    kept = len(whole_trials(tmp_path))
    assert kept in (1, 2) and not contents(tmp_path)
    with started(*four(tmp_path), "--jobs", 1) as process:
        wait_for_trials(tmp_path, kept + 1, process)
        process.kill()
        output = finish(process, status=-signal.SIGKILL)
    assert output.startswith(f"4 trials, {kept} of them trained before")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/.results.csv.part").write_text("half")
    output = call(*four(tmp_path))
    assert not output.startswith("4 trials, 0")
    assert_same(tmp_path, alone)
    assert not [*tmp_path.glob("*/*.part"), *tmp_path.glob(".trials/temporary/*")]


FULL_DISK = (resource.RLIMIT_FSIZE, (500_000,) * 2)  # models have 700,000 bytes


def test_a_full_disk_is_told_in_one_line(four, tmp_path):
    with started(*four(tmp_path)) as process:
        resource.prlimit(process.pid, *FULL_DISK)
        finish(process, status=2)
    assert not contents(tmp_path) and not whole_trials(tmp_path)


def test_fresh_trains_again_and_a_worker_may_die_before_any_trial_has_ended(
    main, alone, call, four, tmp_path, monkeypatch
):
    folder = shutil.copytree(alone, tmp_path / "output")
    monkeypatch.chdir(tmp_path)
    environment = with_startup_code(tmp_path / "startup", DIE)
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    pool = mock.Mock(wraps=main.futures.ProcessPoolExecutor)
    monkeypatch.setattr(main.futures, "ProcessPoolExecutor", pool)
    output = call(*four(folder), "--fresh", "--jobs", 3)
    assert [call.args[0] for call in pool.call_args_list] == [3, 3]
    assert output.startswith("4 trials, 0 of them trained")
    assert output.count("A worker died.") == 1
    assert contents(folder) == contents(alone)


def test_little_memory_is_told_in_one_line(main, call, four, tmp_path, monkeypatch):
    """Then the system kills workers, again and again."""
    tries = []

    def die(*_):
        tries.append(1)
        raise main.futures.BrokenExecutor

    monkeypatch.setattr(main, "train_here", die)
    assert "memory" in call(*four(tmp_path / "out"), status=2)
    assert len(tries) == 5


DIE = """
import os, sys
if "--multiprocessing-fork" in sys.orig_argv and not os.path.exists("died"):
    open("died", "w").close()
    os.kill(os.getpid(), 9)
"""


def test_the_bar_shows_life_at_once_and_moves_before_a_trial_ends(four, tmp_path):
    try:
        terminal, inside = os.openpty()
    except OSError:
        pytest.skip("this machine has no pseudo-terminals")
    environment, shown = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}, ""
    with started(*four(tmp_path), "--epochs", 300, stdout=inside, env=environment):
        os.close(inside)
        while not re.search(r"[1-9]%", shown):
            shown += os.read(terminal, 1000).decode(errors="ignore")
    assert "Training" in shown and "Jackson" not in shown
    times = re.findall(r"0:00:0\d", shown)
    assert len(set(times)) > 1  # time goes on


# ------------------------------------------------- wrong input and odd environments
@pytest.mark.parametrize(
    "arguments", [
        "--epochs 1.5", "--dropout-rate 1", "--learning-rate nan", "--batch-size 0",
        "--jobs 0", "--seed -1", "--nonsense", "--fres", "--data-dir /no/such/folder",
        "--output-dir /proc/nowhere", "--evaluate /no/such.h5", f"--evaluate {__file__}",
    ]
)  # fmt: skip
def test_wrong_input_is_named_in_one_line(call, four, tmp_path, arguments):
    line = call(*four(tmp_path / "output"), *arguments.split(), status=2)
    assert arguments.split()[-1 if "/" in arguments else 0] in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_study_of_something_else_is_refused(main, call, monkeypatch):
    for study, word in (({"epochs": (1, 2)}, "epochs"), ({"batch_size": (0,)}, "0")):
        monkeypatch.setattr(main, "STUDY", study)
        assert word in call(status=2)


def test_help_is_narrow_and_needs_no_tensorflow():
    command = [sys.executable, "-OO", "-X", "importtime", str(SCRIPT), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--evaluate" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert not re.search("tensorflow|keras|sklearn|matplotlib", said.stderr)


# ------------------------------------------------------------------------ evaluation
def test_evaluate_describes_each_file_and_writes_nothing(
    whole, call, data_dir, main, util, monkeypatch
):
    before = contents(whole.folder)
    paths = [whole.folder / f"models/model_{name}.h5" for name in NAMES]
    monkeypatch.setattr(main, "HERE", whole.folder)
    output = call("--data-dir", data_dir, "--evaluate")
    assert contents(whole.folder) == before
    parts = output.split(f"\n{whole.folder}")[1:]
    results = rows(whole.folder / "models/results.csv")
    for part, path, row in zip(parts, paths, results, strict=True):
        means = [f"{float(row[score]):.2f}" for score in SCORES[2:]]
        assert re.search("macro avg +" + " +".join(means), part)
        assert f"/models/{path.name}\n" in part
        assert ("L2 0.001" in part) == (row["use_regularizer"] == "True")
        for field in (*main.Setting._fields, "seed"):
            assert re.search(rf"^{field} +{row[field]}$", part, re.MULTILINE)
        dropouts = part.count("rate 0.3")
        assert dropouts == (1 if "tyler" in path.name else 4)
        for score in ("loss", "accuracy", "precision", "recall", "f1"):
            assert f"{score} {float(row[score]):.4f}" in part
        assert "Ankle boot" in part
        for library, version in util.library_versions().items():
            assert re.search(rf"^{library}_version +{version}$", part, re.MULTILINE)


def test_evaluate_draws_into_the_named_folder(
    whole, call, data_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    files = ("a/b_c.h5", "a_b/c.h5", "a/model_tyler_0.h5", "b/model_tyler_0.h5")
    for name in files:
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(whole.folder / "models/model_tyler_1.h5", name)
    base = ("--data-dir", data_dir, "--output-dir", tmp_path / "c", "--evaluate")
    output = call(*base, *files)
    drawn = names(tmp_path / "c/plots")
    assert len(drawn) == 4 and all(name in output for name in drawn)
    missing = ("--output-dir", tmp_path / "none", "--evaluate", "nothing.h5")
    call("--data-dir", data_dir, *missing, status=2)
    assert not (tmp_path / "none").exists()


def test_outputs_that_are_no_probabilities_have_no_loss(
    main, make_trial, call, data_dir, tmp_path
):
    import keras

    model = main.build_model(make_trial())
    model.layers[-1].activation = keras.activations.tanh
    model.save(tmp_path / "tanh.h5")
    output = call("--data-dir", data_dir, "--evaluate", tmp_path / "tanh.h5")
    assert "loss nan" in output and "no probabilities" in output


# --------------------------------------------------------------------------- cluster
@pytest.fixture
def cluster(tmp_path_factory):
    """A Dask scheduler here: its address, its process, a function to add workers."""
    folder = tmp_path_factory.mktemp("workers")  # where none of our files are
    contact, processes, quiet = folder / "scheduler.json", [], subprocess.DEVNULL

    def launch(kind, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        command += ["--host=127.0.0.1", "--no-dashboard"]
        processes.append(subprocess.Popen(command, cwd=folder, stderr=quiet))
        return processes[-1]

    scheduler = launch("scheduler", "--port=0", f"--scheduler-file={contact}")
    while not contact.exists() and scheduler.poll() is None:
        time.sleep(0.05)
    worker = ("worker", json.loads(contact.read_text())["address"], "--no-nanny")
    yield worker[1], scheduler, lambda n: launch(*worker, f"--nthreads={n}")
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def before_keeping(util, monkeypatch):
    """before_keeping(action) does something just before the first trial is kept."""
    keep_trial = util.keep_trial

    def prepare(action):
        def act_and_keep(folder, *arguments):
            if not list(folder.glob("*.h5")):
                action()
            return keep_trial(folder, *arguments)

        monkeypatch.setattr(util, "keep_trial", act_and_keep)

    return prepare


def test_a_cluster_may_lose_its_only_worker_and_serve_two_runs(
    alone, call, cluster, before_keeping, four, tmp_path
):
    """With the worker, the copies of the data are gone, and the trials of both runs."""
    address, _, add_worker = cluster
    named = ("--cluster", address)
    lost = add_worker(1)
    with started(*four(tmp_path / "other"), "--seed", 8, *named) as process:
        before_keeping(lambda: (lost.kill(), add_worker(2)))
        call(*four(tmp_path / "ours"), *named)
        finish(process)
    assert_same(tmp_path / "ours", alone)
    assert names(tmp_path / "other/models") == MODELS | TABLES


def test_a_cluster_that_fails_is_told_in_one_line(
    call, main, cluster, util, before_keeping, four, tmp_path, monkeypatch
):
    address, scheduler, add_worker = cluster
    named = f"--cluster {address}"
    arguments = (*four(tmp_path), *named.split())
    with monkeypatch.context() as patch:
        patch.setattr(util, "TIMEOUT", 2)
        assert named in call(*arguments, status=2)  # it has no workers yet
        nobody = "--cluster tcp://127.0.0.1:1"
        assert nobody in call(*arguments, *nobody.split(), status=2)
        with socket.create_server(("127.0.0.1", 0)) as port:  # it never answers
            silent = f"--cluster tcp://127.0.0.1:{port.getsockname()[1]}"
            assert silent in call(*arguments, *silent.split(), status=2)
    add_worker(1)
    with monkeypatch.context() as patch:
        patch.setattr(util, "library_versions", lambda: {"numpy": "0"})
        assert "scripts, data or libraries" in call(*arguments, status=2)
    before_keeping(lambda: Path("/dev/full").write_text("no space"))
    line = call(*arguments, status=2)
    assert "No space" in line and "--cluster" not in line
    for script in PROJECT.glob("*.py"):
        shutil.copy(script, tmp_path)
    with open(tmp_path / SCRIPT.name, "a") as file:
        file.write("# edited\n")
    with monkeypatch.context() as patch:
        patch.setattr(main, "HERE", tmp_path)
        line = call(*arguments, "--fresh", status=2)
    assert named in line and "other versions of our scripts" in line
    before_keeping(scheduler.kill)
    monkeypatch.setattr(util, "TIMEOUT", 2)
    line = call(*arguments, "--seed", 9, status=2)
    assert named in line and "no Dask scheduler" in line


# --------------------------------------------------------- what the repository holds
README = (PROJECT / "README.md").read_text(encoding="utf-8")
MODELS_DIR = PROJECT / "models"
SHA256 = "ccfffc5577545201de394ba8928d7355746982f2dfa6cbb00bbb36e0f6db7287"


@pytest.fixture
def published():
    """The tests that use this are not about a run of your own."""
    ours = hashlib.sha256((MODELS_DIR / "results.csv").read_bytes()).hexdigest()
    if ours != SHA256 and "CI" not in os.environ:
        pytest.skip("models/ holds a run of your own")


def table_row(network):
    """README's row of results for this network."""
    return next(x for x in README.splitlines() if x.startswith(f"| {network} | 0."))


def test_readme_has_what_the_program_reports(published, main, capsys):
    tests = {}
    for row in rows(MODELS_DIR / "results.csv"):
        with_l2 = row["use_regularizer"] == "True"
        setting = main.Setting(row["architecture"], with_l2, 0.3, 0.001, 128, 50)
        scores = {score: float(row[score]) for score in SCORES}
        tests.setdefault(setting, []).append((scores, None))
    main.report_results(tests)
    lines = capsys.readouterr().out.splitlines()[2:]
    for network, mean, deviation in zip(NETWORKS, lines[0:8:2], lines[1:8:2]):
        loss, accuracy = zip(mean.split()[-5:][:2], deviation.split())
        cell = " ".join(accuracy) + ", " + " ".join(loss)
        assert f" | {cell.replace('±', '± ')} | " in table_row(network)
    published = re.findall(r"^\| [TJ][^|]*\| (0\.\d+), ", README, re.MULTILINE)
    assert re.findall(r"0\.\d+", lines[12]) == published
    for line in lines[8:11]:
        pair, gap, error = re.fullmatch(
            r"(.*): (.*), standard error (.*)", line
        ).groups()
        assert f"| {pair} | {gap} ± {error} |" in README
    assert [len(seeds) for seeds in tests.values()] == [10] * 4


def test_readme_has_the_published_study(published):
    row = r"\| Tyler( \+ L2)?, ([a-z ]+) ([\d.]+) \| (.*) \| (.*) \|"
    study = re.findall(row, README)
    for with_l2, name, value, accuracy, difference in study:
        which = {"hyperparameter": name.replace(" ", "_"), "value": value}
        which["use_regularizer"] = bool(with_l2)
        [row] = rows(MODELS_DIR / "study.csv", **which)
        numbers = {key: float(row[key]) for key in [*row][3:]}
        found = "{val_accuracy:.4f} ± {standard_deviation:.4f}".format(**numbers)
        assert accuracy == found
        found = "{difference:+.4f} ± {standard_error:.4f}".format(**numbers)
        assert difference == found and numbers["seeds"] == 10
    assert len(study) >= 3


def test_published_models_score_as_the_table_says(published, main, util, real_data_dir):
    *_, test = util.load_data(real_data_dir)
    for name in NAMES:
        path = MODELS_DIR / f"model_{name}.h5"
        [row] = rows(MODELS_DIR / "results.csv", model=f"model_{name}", seed=0)
        scores, _ = main.test_model(util.load_classifier(path), test)
        expected = {score: float(row[score]) for score in SCORES}
        assert scores == pytest.approx(expected, abs=1e-3)
        assert util.read_description(path)["training_images"] == 48_000


def test_readme_names_every_option(main, capsys):
    with pytest.raises(SystemExit):
        main.main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert set(re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE)) == options


def test_readme_snippets_work_alone(util, real_data_dir, tmp_path):
    """A drawn boot of 280 x 140, dark on white, with 9 steps an epoch."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "fashion-mnist").symlink_to(real_data_dir)
    (tmp_path / "models").symlink_to(MODELS_DIR)
    boot = Image.fromarray(255 - util.load_data(real_data_dir)[2][0][0])
    wide = Image.new("L", (560, 280), 255)
    wide.paste(boot.resize((280, 280)), (140, 0))
    wide.save(tmp_path / "my.png")
    assert " ".join(x.replace(" ", "-") for x in util.CLASS_NAMES) in README
    parts = [part.split("```")[0] for part in README.split("```python\n")[1:]]
    short = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_STEPS_PER_EPOCH": "9"}
    code = "".join(f"exec({part!r}, {{}})\n" for part in parts)
    command = [sys.executable, "-c", code]
    options = {"cwd": tmp_path, "env": {**os.environ, **short}, "text": True}
    said = subprocess.run(command, capture_output=True, check=True, **options)
    assert re.search(r"^Ankle-boot +\d", said.stdout, re.MULTILINE)
    assert (tmp_path / "as-the-network-sees-it.png").exists() and len(parts) == 3
    assert (tmp_path / "my-model.keras").exists()
