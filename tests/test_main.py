"""The program as its users meet it, and the training behind it."""

import contextlib
import csv
import functools
import gc
import gzip
import hashlib
import http.server
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
import threading
import time
from concurrent import futures
from types import SimpleNamespace
from unittest import mock

import h5py
import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

SCRIPT = "main-FMNIST.py"
SCRIPTS = {SCRIPT, "model-FMNIST.py", "util-FMNIST.py"}
NETWORKS = ("Tyler", "Tyler + L2", "Jackson", "Jackson + L2")
NAMES = ("tyler_0", "tyler_1", "jackson_0", "jackson_1")
TABLES = {"history.csv", "results.csv"}
SCORES = ("loss", "accuracy", "precision", "recall", "f1")
SETTING = ("--epochs", 2, "--batch-size", 64, "--seed", 7)
CENTRE = {"dropout_rate": 0.3, "learning_rate": 0.001, "batch_size": 64, "epochs": 2}
STUDY = {"dropout_rate": (0.1,), "learning_rate": (0.003,)}  # smaller than published
TRIALS = ".trials/[0-9a-f]*.h5"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, make_idx_dir):
    """A small data set: 600 images to train on, 150 to validate, 100 to test."""
    return make_idx_dir(tmp_path_factory.mktemp("data"), train=750, test=100)


data = pytest.fixture(lambda util, data_dir: util.load_data(data_dir), scope="session")


@pytest.fixture(scope="session")
def four(data_dir):
    """four(folder) are the arguments of a run of four trials into this folder."""
    arguments = (*SETTING, "--no-sweep", "--data-dir", data_dir)
    return lambda folder: (*arguments, "--output-dir", folder)


# --------------------------------------------------------------- running the program
@contextlib.contextmanager
def started(*arguments, script=PROJECT / SCRIPT, **options):
    """The program as a process with a session of its own, which ends with the block."""
    command = [sys.executable, str(script), *map(str, arguments)]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options |= {"start_new_session": True, "preexec_fn": heed_ctrl_c}
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
    """The output, or after a failure the only line of stderr, but for the warning that
    our small data set is not Fashion-MNIST."""
    assert status == expected_status, output + error
    lines = [x for x in error.splitlines() if "are not Fashion-MNIST" not in x]
    if status > 0:
        [output] = lines
    assert lines == [] or status  # after kill -9, Python speaks of its semaphores
    return output


@pytest.fixture
def call(main, capsys):
    """call(*arguments, status=0) runs the program in this process, like `finish`."""

    def run_here(*arguments, status=0):
        ended = 0
        try:
            main.main([*map(str, arguments)])
        except SystemExit as stop:
            ended = stop.code
        return what_a_user_reads(status, ended, *capsys.readouterr())

    return run_here


class Here(futures.Executor):
    """An executor without workers: to start some takes longer than small trials do."""

    def submit(self, function, *arguments):
        future = futures.Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001 - it is raised in the program
            future.set_exception(error)
        return future


@pytest.fixture
def without_workers(main, util, monkeypatch):
    """Trials are trained in this process, and no network is checked before."""
    monkeypatch.setattr(util, "local_workers", lambda options: Here())
    monkeypatch.setattr(main, "check_networks", lambda *_: None)


def copy_scripts(folder, script, pattern, replacement):
    """Copy the scripts into a folder, and edit one of them."""
    folder.mkdir(exist_ok=True)
    for name in SCRIPTS:
        shutil.copy(PROJECT / name, folder)
    text = (folder / script).read_text()
    edited, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
    assert count == 1
    (folder / script).write_text(edited)
    return folder


# ------------------------------------------------------------------- reading its files
def description(path):
    """The attributes of an .h5 file."""
    with h5py.File(path) as file:
        return dict(file.attrs)


def rows(path, **fields):
    """The rows of a table in which these fields have these values."""
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    wanted = {field: str(value) for field, value in fields.items()}
    return [row for row in table if wanted.items() <= row.items()]


def column(path, name, **fields):
    return [float(row[name]) for row in rows(path, **fields)]


def final(name):
    """The fields of a final model: "tyler_1" is Tyler with L2."""
    return {"architecture": name[:-2], "use_regularizer": name[-1] == "1", **CENTRE}


def names(folder):
    return {path.name for path in folder.iterdir()}


def models(names):
    return {f"model_{name}.h5" for name in names}


def plots(names, studied):
    """The names of the pictures of these models, and of these networks' studies."""
    every = {f"architecture_{name[:-2]}.png" for name in names}
    every |= {f"confusion_matrix_{name}.png" for name in names}
    every |= {f"hyperparameters_{network}.png" for network in studied}
    return every | {"accuracy_and_loss.png", "predictions.png"}


def contents(folder):
    """{path: bytes} of the models, tables and pictures in an output folder."""
    paths = [*folder.glob("models/*"), *folder.glob("plots/*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def assert_same_models(ours, theirs, count=4):
    """The same weights, histories and descriptions, to the last byte."""
    paths = [*ours.glob("models/model_*.h5")]
    assert len(paths) == count
    for path in paths:
        assert path.read_bytes() == (theirs / "models" / path.name).read_bytes()


def measure(path, *parts):
    """What plain Keras measures with a saved model: [loss, accuracy] for each part of the
    data, (images from 0 to 255, labels), and the probabilities of the first part."""
    import keras

    model = keras.models.load_model(path)
    model.run_eagerly = True  # which is faster for once
    parts = [(images / np.float32(255), labels) for images, labels in parts]
    measured = [model.evaluate(*part, batch_size=500, verbose=0) for part in parts]
    return measured, model(parts[0][0]).numpy()


# ----------------------------------------------------------------- the trials to train
def test_the_study_moves_one_published_value_at_a_time(main):
    options = main.parse_options([])
    settings = main.final_settings(options)
    assert [setting.label for setting in settings] == [*NETWORKS]
    assert {setting[2:] for setting in settings} == {(0.3, 0.001, 128, 50)}
    assert (options.seed, options.repeats, main.STUDIED) == (0, 1, ("tyler",))
    values = {
        "dropout_rate": [0.1, 0.2, 0.3, 0.4, 0.5],
        "learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01],
        "batch_size": [32, 64, 128, 256, 512],
    }
    for tyler in settings[:2]:
        moved = main.study_settings(tyler)
        assert [*moved] == [(name, x) for name in values for x in values[name]]
        for (name, value), setting in moved.items():
            assert setting == tyler._replace(**{name: value})
    study = main.study_rows({tyler: {}}, {tyler: {"val_accuracy": np.eye(50)}})
    assert [row["value"] for row in study] == [10, 20, 30, 40, 50]
    assert {row["hyperparameter"] for row in study} == {"epochs"}


def test_options_reach_the_setting(main):
    named = "--dropout-rate 0.2 --learning-rate 0.002 --batch-size 96 --epochs 7"
    settings = main.final_settings(main.parse_options(named.split()))
    assert {setting[2:] for setting in settings} == {(0.2, 0.002, 96, 7)}
    moved = main.study_settings(settings[0])
    rates = [value for name, value in moved if name == "learning_rate"]
    assert rates == [0.0001, 0.0003, 0.001, 0.002, 0.003, 0.01]
    study = main.study_rows(
        {settings[0]: {}}, {settings[0]: {"val_accuracy": np.eye(7)}}
    )
    assert [row["value"] for row in study] == [2, 3, 5, 6, 7]


# ---------------------------------------------------------------------- the training
FIRST_EPOCHS = {  # loss and accuracy of seed 0 on the real data
    "tyler_0": ((0.6276, 0.7760), (0.4123, 0.8533)),
    "tyler_1": ((1.0892, 0.7680), (0.7431, 0.8463)),
    "jackson_0": ((0.7705, 0.7273),),
    "jackson_1": ((1.4742, 0.7257),),
}


@pytest.mark.usefixtures("whole_begun")  # it runs beside this
@pytest.mark.parametrize("name, epochs", FIRST_EPOCHS.items(), ids=NAMES)
def test_training_starts_as_published(
    main, util, make_trial, real_data_dir, tmp_path, name, epochs
):
    """Another processor or seed differs by 1 %. Without dropout it is 5 % and more."""
    train, validation, test = util.load_data(real_data_dir)
    values = {**final(name), "batch_size": 128, "epochs": len(epochs)}
    path = tmp_path / "model.h5"
    path.write_bytes(main.train_trial(*make_trial(**values), train, validation))
    history = {metric: runs[0] for metric, runs in util.read_histories([path]).items()}
    found = np.transpose([history["loss"], history["accuracy"]])
    np.testing.assert_allclose(found, epochs, rtol=0.01)
    assert 0.82 < history["val_accuracy"][-1] < 0.88
    scores, _ = main.test_model(util.load_classifier(path), test)
    assert history["val_accuracy"][-1] - 0.03 < scores["accuracy"] < 0.88


@pytest.mark.parametrize("name, size", [("tyler_0", 250), ("jackson_1", 601)])
def test_a_trial_does_the_arithmetic_of_fit(
    main, util, make_trial, data, tmp_path, name, size
):
    """Without dropout, all chance is in the first weights and in the order of the images,
    which is new in each epoch. Of 600, a smaller batch remains, or all are one."""
    import keras

    (images, labels), (x_val, y_val), _ = data
    images, x_val = images / np.float32(255), x_val / np.float32(255)
    values = {"dropout_rate": 0.0, "learning_rate": 0.0005, "batch_size": size}
    setting, seed = make_trial(**{**final(name), **values}, seed=3)
    path = tmp_path / "model.h5"
    path.write_bytes(main.train_trial(setting, seed, *data[:2]))
    keras.utils.set_random_seed(3)
    theirs, random = main.build_network(setting), np.random.default_rng(3)
    adam = keras.optimizers.Adam(0.0005)
    theirs.compile(adam, "categorical_crossentropy", metrics=["accuracy"])
    options = {"validation_data": (x_val, y_val), "shuffle": False, "verbose": 0}
    for epoch in range(2):
        order = random.permutation(600)
        fit = theirs.fit(images[order], labels[order], size, **options)
        for metric, [ours] in util.read_histories([path]).items():
            # An image may fall on the other side: 1 of 150.
            [expected] = fit.history[metric]
            assert ours[epoch] == pytest.approx(expected, rel=1e-3, abs=0.007)
    ours = keras.models.load_model(path)
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        # Adam divides by the gradient's size: where that is nearly 0, rounding shows.
        assert np.abs(one.value - other.value).mean() < 1e-5
    rate = float(ours.optimizer.learning_rate)  # with which `fit` goes on
    assert rate == pytest.approx(0.0005)


def test_each_layer_and_each_step_draws_its_own_numbers(main, make_trial, data):
    import keras

    keras.utils.set_random_seed(3)
    jackson = main.build_network(make_trial("jackson")[0])
    no_step = keras.optimizers.SGD(0.0)
    run_epoch = main.epoch_function(jackson, no_step)
    order = np.arange(600, dtype="int32")  # a single batch
    epochs = [run_epoch(*data[0], order, 600, training=True) for _ in range(3)]
    assert len({float(values["loss"]) for values in epochs}) == 3
    epochs = [run_epoch(*data[0], order, 600, training=False) for _ in range(3)]
    assert len({float(values["loss"]) for values in epochs}) == 1  # no dropout
    dropouts = [layer for layer in jackson.layers if layer.name.startswith("dropout")]
    ones = np.ones((1, 1000), "float32")
    masks = {layer(ones, training=True).numpy().tobytes() for layer in dropouts}
    tyler = main.build_network(make_trial()[0])
    kernels = {layer.kernel.numpy().tobytes() for layer in tyler.layers[2:6]}
    assert len(masks) == len(kernels) == 4


def test_a_trial_leaves_nothing_in_its_worker(main, make_trial, data):
    """A model and its graphs refer to each other and would pile up."""
    import keras

    counts = []
    gc.disable()  # so that it is train_trial that collects, not chance
    for _ in range(2):
        main.train_trial(*make_trial(), *data[:2])
        counts.append(sum(type(x) is keras.Sequential for x in gc.get_objects()))
    gc.enable()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("architecture", ["tyler", "jackson"])
def test_a_diverged_model_has_no_scores(
    main, util, make_trial, data, tmp_path, capsys, architecture
):
    """Tyler's loss stays finite: in the graph's ReLU, a NaN becomes 0."""
    trial, path = make_trial(architecture, learning_rate=1e12), tmp_path / "model.h5"
    path.write_bytes(main.train_trial(*trial, *data[:2]))
    history = util.read_histories([path])
    assert np.isnan([*history.values()]).all()
    assert "diverged" in util.trial_line(*trial, path)
    tested = main.test_model(util.load_classifier(path), data[2])
    assert np.isnan([*tested[0].values()]).all()
    util.report_results({trial[0]: [tested]})
    assert capsys.readouterr().out.count("diverged") == len(SCORES)


def test_a_sure_mistake_costs_what_keras_says(main, make_trial, data):
    """Keras takes the loss from the logits; probabilities would be clipped at 1e-7."""
    model = main.build_network(make_trial()[0])
    model.layers[-1].kernel.assign(1000 * model.layers[-1].kernel)
    assert main.test_model(model, data[2])[0]["loss"] > 20


# ---------------------------------------------------------------- a whole experiment
ODD = {
    "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error",
    "TF_ENABLE_ONEDNN_OPTS": "0", "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    "ONEDNN_MAX_CPU_ISA": "SSE41", "MPLBACKEND": "nonsense", "NO_COLOR": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
}  # fmt: skip
MINE = ("models/mine.h5", "plots/mine.png", ".trials/mine.h5")


@pytest.fixture(scope="session")
def whole_begun(tmp_path_factory, data_dir):
    """Two seeds of the experiment with a small study, two trials at a time, beside a
    copy of the scripts and files of the user's, from another folder, in an odd
    environment. It runs while other tests do."""
    folder, home, elsewhere = map(tmp_path_factory.mktemp, ("project", "home", "e"))
    copy_scripts(folder, SCRIPT, r"STUDY = {.*?\n}", f"STUDY = {STUDY}")
    for name in MINE:
        (folder / name).parent.mkdir()
        (folder / name).write_text("mine")
    keras_settings = {"floatx": "nonsense", "image_data_format": "channels_first"}
    (home / "keras.json").write_text(json.dumps(keras_settings))
    folders = {"TMPDIR": str(elsewhere), "KERAS_HOME": str(home)}
    environment = {**os.environ, **ODD, **folders}
    arguments = (*SETTING, "--repeats", 2, "--jobs", 2, "--data-dir", data_dir)
    options = {"cwd": elsewhere, "env": environment, "script": folder / SCRIPT}
    with started(*arguments, **options) as process:
        yield SimpleNamespace(folder=folder, process=process, elsewhere=elsewhere)


@pytest.fixture(scope="session")
def whole(whole_begun):
    whole_begun.output = finish(whole_begun.process)
    return whole_begun


@pytest.fixture(scope="session")
def by_keras(whole, data):
    """{(name, seed): (path, [loss, accuracy] of test and validation, probabilities)} of
    each trial of the four models, as plain Keras has them."""
    measured = {}
    for path in whole.folder.glob(TRIALS):
        saved = description(path)
        name = f"{saved['architecture']}_{saved['use_regularizer']:d}"
        if final(name).items() <= saved.items():
            measured[name, saved["seed"]] = (path, *measure(path, data[2], data[1]))
    assert {*measured} == {(name, seed) for name in NAMES for seed in (7, 8)}
    return measured


@pytest.fixture
def stored(whole, tmp_path, main, monkeypatch):
    """A new output folder with the trials of the whole run, and nothing else."""
    monkeypatch.setattr(main, "STUDY", STUDY)
    shutil.copytree(whole.folder / ".trials", tmp_path / "out" / ".trials")
    return tmp_path / "out"


def test_the_terminal_tells_the_story_in_narrow_lines(whole):
    lines = whole.output.splitlines()
    assert lines[0] == "16 trials, 0 of them trained before"
    trained, _, rest = whole.output.partition("Testing the models")
    done = re.findall(r"^(?:Tyler|Jackson).* (\d+)$", trained, re.MULTILINE)
    assert [*map(int, done)] == [*range(1, 17)]
    assert trained.splitlines()[3].startswith("Tyler  ")  # the final models come first
    study, _, tested = rest.partition("Test results")
    points = re.findall(r"^(\w+ +[\d.]+) +0", study, re.MULTILINE)
    words = "dropout 0.1 dropout 0.3 learning 0.001 learning 0.003 epochs 1 epochs 2"
    assert " ".join(points).split() == words.split()
    assert tested.split()[:5] == [*SCORES]
    assert re.findall(r"^(\w.*?)  *\d", tested, re.MULTILINE)[:4] == [*NETWORKS]
    assert "Published" in lines[-3] and str(whole.folder) in lines[-1]
    assert max(map(len, lines[:-2])) <= 60


def test_every_file_is_there_and_no_other(whole):
    assert names(whole.folder) == SCRIPTS | {"models", "plots", ".trials"}
    every = models(NAMES) | TABLES | {"study.csv", "mine.h5"}
    assert names(whole.folder / "models") == every
    assert names(whole.folder / "plots") == plots(NAMES, ["tyler"]) | {"mine.png"}
    assert {(whole.folder / name).read_text() for name in MINE} == {"mine"}
    assert names(whole.elsewhere) == set()


def test_tables_say_what_the_trials_histories_say(whole, util, main):
    folder = whole.folder / "models"
    accuracies, weights = {}, set()  # {setting: {seed: validation accuracies}}
    for path in whole.folder.glob(TRIALS):
        saved, history = description(path), util.read_histories([path])
        setting = {field: saved[field] for field in main.Setting._fields}
        for name, runs in {**history, "epoch": [(1, 2)]}.items():
            found = column(folder / "history.csv", name, **setting, seed=saved["seed"])
            assert found == [*runs[0]] and len(found) == 2
        seeds = accuracies.setdefault(tuple(setting.values()), {})
        [seeds[saved["seed"]]] = history["val_accuracy"]
        label, values = main.Setting(**setting).label, [*setting.values()][2:5]
        words = [label, *(f"{x:g}" for x in values), saved["seed"]]
        words.append(f"{history['val_accuracy'][0, -1]:.4f} ")
        assert "\n" + " ".join(map(str, words)) in re.sub(" +", " ", whole.output)
        with h5py.File(path) as file:
            kernel = f"model_weights/hidden_1/{saved['architecture']}/hidden_1/kernel"
            weights.add(file[kernel][:].tobytes())
    assert len(accuracies) == 8 and len(rows(folder / "history.csv")) == 8 * 2 * 2
    assert len(weights) == 16  # each value matters; `fit`'s test has the batch size
    study = rows(folder / "study.csv", architecture="tyler")
    for row in study:
        setting = final(f"tyler_{row['use_regularizer'] == 'True':d}")
        reference, epoch = accuracies[tuple(setting.values())], 2
        if row["hyperparameter"] == "epochs":
            epoch = int(row["value"])
        else:
            setting[row["hyperparameter"]] = float(row["value"])
        seeds = accuracies[tuple(setting.values())]
        found = [seeds[7][epoch - 1], seeds[8][epoch - 1]]
        differences = np.subtract(found, [reference[7][1], reference[8][1]])
        error = np.std(differences, ddof=1) / np.sqrt(2)
        numbers = [
            np.mean(found),
            np.std(found, ddof=1),
            np.mean(differences),
            error,
            2,
        ]
        assert [*map(float, [*row.values()][4:])] == pytest.approx(numbers)
    assert len(study) == len(rows(folder / "study.csv")) == 2 * (2 + 2 + 2)


def test_each_seed_has_the_scores_that_plain_keras_measures(whole, by_keras, util):
    """A saved model is the one that its name says, and needs nothing of ours."""
    import keras

    table = whole.folder / "models/results.csv"
    which = [(row["model"][6:], int(row["seed"])) for row in rows(table)]
    assert which == [(name, seed) for name in NAMES for seed in (7, 8)]
    for row, (name, seed) in zip(rows(table), which):
        path, measured, _ = by_keras[name, seed]
        assert rows(table, **final(name), seed=seed) == [row]
        history = util.read_histories([path])
        last = [history["val_loss"][0, -1], history["val_accuracy"][0, -1]]
        found = np.array([[float(row["loss"]), float(row["accuracy"])], last])
        assert found == pytest.approx(np.array(measured), rel=1e-4)
        saved = whole.folder / f"models/model_{name}.h5"  # the first seed's
        assert (saved.read_bytes() == path.read_bytes()) == (seed == 7)
        assert description(path)["training_images"] == 600
    lines = whole.output.partition("Test results")[2].splitlines()[1:]
    for name, mean, deviation in zip(NAMES, lines[0::2], lines[1::2]):
        values = [column(table, score, model=f"model_{name}") for score in SCORES]
        assert mean.split()[-5:] == [f"{np.mean(x):.4f}" for x in values]
        # ASCII has no ±.
        assert deviation.split() == [f"?{np.std(x, ddof=1):.4f}" for x in values]
    model = keras.models.load_model(saved)
    before = model.layers[1].kernel.numpy()
    model.fit(np.ones((32, 28, 28)), np.eye(10)[[1] * 32], verbose=0)
    assert (model.layers[1].kernel.numpy() != before).any()


@contextlib.contextmanager
def recorded(util):
    """{file name: (figure, note)} of what is drawn."""
    drawn, save = {}, util.save_figure

    def record(figure, path, note=""):
        drawn[path.name] = (figure, note)
        save(figure, path, note)

    with mock.patch.object(util, "save_figure", record):
        yield drawn


def assert_curve(axes, label, expected):
    """A labelled curve, with error bars or without, has these values."""
    curves = dict(zip(*reversed(axes.get_legend_handles_labels())))
    line = getattr(curves[label], "lines", [curves[label]])[0]
    assert [*line.get_ydata()] == pytest.approx([*expected])


def assert_study_is_drawn(figure, table, architecture):
    shown = []
    for axes in figure.axes:
        shown.append(axes.get_xlabel().split(" (")[0].replace(" ", "_"))
        which = {"architecture": architecture, "hyperparameter": shown[-1]}
        for label, with_l2 in (("without L2", False), ("with L2", True)):
            expected = column(table, "val_accuracy", **which, use_regularizer=with_l2)
            assert_curve(axes, label, expected)
    assert figure.get_suptitle().startswith(architecture.title())
    assert shown == [*dict.fromkeys(row["hyperparameter"] for row in rows(table))]


def test_the_same_command_trains_nothing_and_draws_what_the_tables_say(
    stored, whole, call, main, util, by_keras, data, data_dir, monkeypatch
):
    monkeypatch.setattr(util, "train_in_workers", None)
    arguments = (*SETTING, "--repeats", 2, "--data-dir", data_dir)
    monkeypatch.setattr(main, "check_networks", lambda *_: None)
    with recorded(util) as pictures:
        output = call(*arguments, "--output-dir", stored)
    assert output.startswith("16 trials, 16 of them trained before\nTesting")
    for path, content in contents(stored).items():
        assert (whole.folder / path).read_bytes() == content
    assert {note for _, note in pictures.values()} == {""}
    figures = {name: figure for name, (figure, _) in pictures.items()}
    titles = {name: figure.get_suptitle() for name, figure in figures.items()}
    tables, labels = whole.folder / "models", data[2][1].argmax(axis=1)
    assert_study_is_drawn(
        figures["hyperparameters_tyler.png"], tables / "study.csv", "tyler"
    )
    for network, name in zip(NETWORKS, NAMES):
        panels = figures["accuracy_and_loss.png"].axes
        half = panels[:2] if name[:-2] == "tyler" else panels[2:]
        for axes, metric in zip(half, ("accuracy", "loss"), strict=True):
            assert axes.get_title() == name[:-2].title()
            for part, prefix in (("training", ""), ("validation", "val_")):
                label = f"{part}, {'with' if name[-1] == '1' else 'without'} L2"
                runs = column(tables / "history.csv", prefix + metric, **final(name))
                assert_curve(axes, label, np.mean([runs[:2], runs[2:]], axis=0))
        _, [(_, accuracy), _], probabilities = by_keras[name, 7]
        matrix = np.zeros((10, 10))  # the test has ten images of each class
        np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 0.1)
        file = f"confusion_matrix_{name}.png"
        np.testing.assert_allclose(figures[file].axes[0].images[0].get_array(), matrix)
        assert titles[file] == f"{network}, seed 7: test accuracy {accuracy:.2%}"
    texts = figures["architecture_tyler.png"].axes[0].texts
    assert not [text for text in texts if "L2" in text.get_text()]
    assert "Tyler: 167,818" in titles["architecture_tyler.png"]
    assert "Jackson: 575,050" in titles["architecture_jackson.png"]


# --------------------------------------------------------- a quick run, more networks
def small_network(name):
    """A builder as NETWORKS has them, of a network without hidden layers."""
    from keras import Input, Sequential, layers, regularizers

    def build(num_classes=10, use_regularizer=False, dropout_rate=0.3):
        l2 = regularizers.L2(0.01) if use_regularizer else None
        output = layers.Dense(num_classes, "softmax", kernel_regularizer=l2)
        stack = [
            Input((28, 28)),
            layers.Flatten(),
            layers.Dropout(dropout_rate),
            output,
        ]
        return Sequential(stack, name=name)

    return build


@pytest.fixture(scope="module")
def quick(main, util, model, real_data_dir, tmp_path_factory):
    """A quick run on the real data, in this process, with two new networks, both of them
    studied, in place of ours."""
    folder, output, error = tmp_path_factory.mktemp("out"), io.StringIO(), io.StringIO()
    draw = util.draw

    def draw_the_last_as_best(options, histories, results, *others):
        [*_, last] = results
        better = {**histories[last], "val_accuracy": np.ones((1, 5))}
        draw(options, {**histories, last: better}, results, *others)

    networks = {name: small_network(name) for name in ("parker", "quinn")}
    study = {"STUDIED": ("parker", "quinn"), "STUDY": {"dropout_rate": (0.1,)}}
    with (
        mock.patch.dict(model.NETWORKS, networks, clear=True),
        mock.patch.object(util, "local_workers", lambda options: Here()),
        mock.patch.object(util, "draw", draw_the_last_as_best),
        mock.patch.multiple(main, HERE=folder, **study),
        recorded(util) as pictures,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(error),
    ):
        main.main(["--quick", "--batch-size=480", f"--data-dir={real_data_dir}"])
    assert error.getvalue() == ""  # these are the data
    folder, output = folder / "quick", output.getvalue()
    return SimpleNamespace(folder=folder, output=output, pictures=pictures)


def test_a_quick_run_is_small_and_says_so(quick, util, real_data_dir):
    """It is tested on test images, and validated on images that it does not train on."""

    def read(name, first, n):
        content = gzip.decompress((real_data_dir / f"{name}-ubyte.gz").read_bytes())
        size, header = (784, 16) if "images" in name else (1, 8)
        values = np.frombuffer(content, np.uint8, n * size, header + first * size)
        return values.reshape(n, 28, 28) if size == 784 else np.eye(10)[values]

    parts = []
    for part, first, n in (("t10k", 0, 2000), ("train", 48_000, 1200)):
        images = read(f"{part}-images-idx3", first, n)
        parts.append((images, read(f"{part}-labels-idx1", first, n)))
    tables = quick.folder / "models"
    for row in rows(tables / "results.csv"):
        path = tables / f"{row['model']}.h5"
        saved = {field: row[field] for field in [*row][1:8]}
        [last] = rows(tables / "history.csv", **saved, epoch=5)
        found = [
            [row["loss"], row["accuracy"]],
            [last["val_loss"], last["val_accuracy"]],
        ]
        measured, probabilities = measure(path, *parts)
        assert np.array(found, float) == pytest.approx(np.array(measured), rel=1e-3)
        assert description(path)["training_images"] == 4800
    assert "cannot be compared" in quick.output and str(quick.folder) in quick.output
    assert "One seed: small differences may be chance." in quick.output
    assert all("quick" in note for _, note in quick.pictures.values())
    # The best network's first right ones and its most confident mistakes.
    figure, _ = quick.pictures["predictions.png"]
    assert figure.get_suptitle().startswith("Quinn + L2: ")
    images, labels = parts[0][0], parts[0][1].argmax(axis=1)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = sorted(np.flatnonzero(predicted != labels), key=lambda i: -confidence[i])
    shown = [*np.flatnonzero(predicted == labels)[:6], *wrong[:6]]
    for axes, i in zip(figure.axes, shown, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[i])
        _, guess, percent = re.findall(": (.*?)%?$", axes.get_title(), re.MULTILINE)
        assert guess == util.CLASS_NAMES[predicted[i]]
        assert float(percent) == pytest.approx(100 * confidence[i], abs=0.1)


def test_a_network_that_is_added_is_in_everything(quick, call, main, monkeypatch):
    added = {"parker_0": "Parker", "parker_1": "Parker + L2"}
    added |= {"quinn_0": "Quinn", "quinn_1": "Quinn + L2"}
    folder, found = quick.folder / "models", []
    assert names(folder) == models(added) | TABLES | {"study.csv"}
    assert names(quick.folder / "plots") == plots(added, ["parker", "quinn"])
    figures = {name: figure for name, (figure, _) in quick.pictures.items()}
    for name, label in added.items():
        [accuracy] = column(folder / "results.csv", "accuracy", model=f"model_{name}")
        title = figures[f"confusion_matrix_{name}.png"].get_suptitle()
        assert title == f"{label}: test accuracy {accuracy:.2%}"
        assert re.search(
            f"\n{re.escape(label)} +[0-9.]+ +{accuracy:.4f} ", quick.output
        )
    panels = figures["accuracy_and_loss.png"].axes
    assert [axes.get_title() for axes in panels] == ["Parker"] * 2 + ["Quinn"] * 2
    for network in ("parker", "quinn"):
        diagram = figures[f"architecture_{network}.png"].get_suptitle()
        assert diagram.startswith(f"{network.title()}: 7,850 weights")
        table, figure = folder / "study.csv", figures[f"hyperparameters_{network}.png"]
        assert_study_is_drawn(figure, table, network)
        study = rows(table, architecture=network, seeds=1, standard_error="nan")
        assert len(study) == 2 * (2 + 5)
        assert f"Study of {network.title()}: " in quick.output
    monkeypatch.setattr(main, "evaluate_file", lambda path, _: found.append(path.name))
    call("--quick", "--output-dir", quick.folder, "--evaluate")
    assert found == sorted(models(added))


def test_the_report_compares_each_network_with_each_other(util, make_trial, capsys):
    accuracies = np.random.default_rng(0).random((3, 2, 5))
    results = {}
    for network, pair in zip(("tyler", "jackson", "parker"), accuracies):
        for use_regularizer, seeds in zip((False, True), pair):
            setting, _ = make_trial(network, use_regularizer=use_regularizer)
            results[setting] = [(dict.fromkeys(SCORES, x), None) for x in seeds]
    util.report_results(results)
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 60
    (tyler, tyler_l2), (jackson, _), (parker, _) = accuracies
    pairs = {"Tyler - Parker": tyler - parker, "Jackson - Parker": jackson - parker}
    pairs |= {
        "Tyler - Jackson": tyler - jackson,
        "Tyler - Tyler + L2": tyler - tyler_l2,
    }
    for pair, differences in pairs.items():
        error = np.std(differences, ddof=1) / np.sqrt(5)
        assert (
            f"\n{pair}: {differences.mean():+.4f}, standard error {error:.4f}\n"
            in output
        )
    assert output.count(" - ") == 6


def test_a_network_that_cannot_work_is_refused_before_any_training(
    main, model, util, call, four, tmp_path, monkeypatch
):
    import keras

    class Twice(keras.layers.Layer):  # its file cannot be read without this class
        def call(self, x):
            return x * 2

    def with_twice(**arguments):
        return keras.Sequential([*model.build_tyler(**arguments).layers, Twice()])

    monkeypatch.setattr(util, "train_missing", None)
    with mock.patch.object(main, "STUDIED", ("parker",)):
        assert "STUDIED names {'parker'}" in call(*four(tmp_path), status=2)
    eleven = functools.partial(model.build_tyler, 11)
    for builder, word in ((eleven, "(11,)"), (with_twice, "its saved file cannot")):
        monkeypatch.setitem(model.NETWORKS, "parker", builder)
        line = call(*four(tmp_path), status=2)
        assert "Parker: " in line and word in line
    assert names(tmp_path) == set()


# ------------------------------------------------------------ nothing is trained twice
def test_another_seed_or_value_trains_only_itself(
    main, util, call, stored, data_dir, monkeypatch
):
    def to_train(*arguments):
        """The (setting, seed) that a run with these arguments would train."""
        train = mock.Mock(side_effect=util.InputError("stop"))
        monkeypatch.setattr(util, "train_in_workers", train)
        arguments = (*SETTING, *arguments, "--data-dir", data_dir)
        assert "stop" in call(*arguments, "--output-dir", stored, status=2)
        return [*train.call_args.args[0]]

    monkeypatch.setattr(main, "check_networks", lambda *_: None)
    assert {seed for _, seed in to_train("--repeats", 3)} == {9}
    assert len(to_train("--repeats", 2, "--fresh")) == 16
    moved = to_train("--no-sweep", "--dropout-rate", 0.1)  # the study has Tyler's
    assert [setting.label for setting, _ in moved] == ["Jackson", "Jackson + L2"]
    assert len(to_train("--repeats", 2, "--epochs", 3)) == 16


def test_a_worker_that_finds_another_key_keeps_nothing(util, make_trial, tmp_path):
    """Its scripts were edited after the start, or its data or libraries are others."""
    path = tmp_path / "key.h5"
    arguments = (make_trial(), "key", path, SimpleNamespace(cluster=None))
    with pytest.raises(util.InputError, match="start again"):
        util.train_and_keep(lambda *_: ("other", b"content"), *arguments)
    assert names(tmp_path) == set()
    util.train_and_keep(lambda *_: ("key", b"content"), *arguments)
    assert path.read_bytes() == b"content"


# ------------------------------------------------------------------ interrupted runs
DIE = """
import os, sys
if "--multiprocessing-fork" in sys.orig_argv and not os.path.exists("died"):
    open("died", "w").close()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("without_workers")
def test_two_runs_in_a_folder_a_dead_worker_ctrl_c_and_kill_9_lose_nothing(
    whole, four, call, util, tmp_path, monkeypatch
):
    """Nothing is lost but the trials under way, and the end is the same."""
    folder = tmp_path / "out"
    arguments = (*four(folder), "--jobs", 1)
    (tmp_path / "sitecustomize.py").write_text(DIE)  # every Python runs this first
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with (
        started(*arguments, cwd=tmp_path, env=env) as one,
        started(*arguments, "--repeats", 2) as other,  # it has the same trials and more
    ):
        before = []
        while before[-1:] != ["Tyler"]:
            before += one.stdout.readline().partition(" ")[:1]
        assert before.count("A") == 1  # worker died
        os.killpg(one.pid, signal.SIGINT)  # as a terminal does, to every process
        other.kill()
        assert "interrupted" in finish(one, status=130)
        finish(other, status=-signal.SIGKILL)
    seeds = {path: description(path)["seed"] for path in folder.glob(TRIALS)}
    kept = [path for path, seed in seeds.items() if seed == 7]
    assert names(folder) == {".trials"} and 1 <= len(kept) <= 4
    os.truncate(kept[0], 300_000)  # as a bad disk does
    monkeypatch.setattr(util, "draw", lambda *_: None)
    (folder / "models").mkdir()
    (folder / "models/study.csv").write_text("older")
    output = call(*four(folder))
    assert "models/study.csv and its plot are left from an earlier run" in output
    assert (folder / "models/study.csv").read_text() == "older"
    assert output.startswith(f"4 trials, {len(kept) - 1} of them trained before")
    assert_same_models(folder, whole.folder)


def test_a_full_disk_is_told_in_one_line(call, four, util, tmp_path, monkeypatch):
    with started(*four(tmp_path)) as process:
        limits = (500_000,) * 2  # models have 700,000 bytes
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
        finish(process, status=2)
    monkeypatch.setattr(util.os, "fsync", mock.Mock(side_effect=OSError("No space")))
    with pytest.raises(OSError, match="No space"):
        util.write_whole(tmp_path / "file", b"content")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("without_workers")
def test_little_memory_is_told_in_one_line(util, call, four, tmp_path, monkeypatch):
    """Then the system kills workers, again and again."""
    die = mock.Mock(side_effect=futures.BrokenExecutor)
    monkeypatch.setattr(util, "train_in_workers", die)
    assert "memory" in call(*four(tmp_path), status=2)
    assert die.call_count == 5


# ------------------------------------------------- wrong input and odd environments
@pytest.mark.parametrize(
    "arguments", [
        "--epochs 1.5", "--dropout-rate 1", "--learning-rate nan", "--batch-size 0",
        "--jobs 0", "--seed -1", "--nonsense", "--fres", "--data-dir /no/such/folder",
        "--output-dir /proc/nowhere", "--evaluate /no/such.h5", f"--evaluate {__file__}",
    ]
)  # fmt: skip
@pytest.mark.usefixtures("without_workers")
def test_wrong_input_is_named_in_one_line(call, four, tmp_path, arguments):
    line = call(*four(tmp_path / "output"), *arguments.split(), status=2)
    assert arguments.split()[-1 if "/" in arguments else 0] in line
    assert "--output-dir" in line or "output" not in arguments
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_help_is_narrow_and_needs_no_tensorflow():
    command = [sys.executable, "-OO", "-X", "importtime", PROJECT / SCRIPT, "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--evaluate" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert not re.search("tensorflow|keras|sklearn|matplotlib", said.stderr)


NOTEBOOK = """
import sys, types
class Stream:  # a kernel's: it has no `reconfigure`
    isatty = staticmethod(lambda: False)
    def __init__(self, stream):
        self.write, self.flush = stream.write, stream.flush
def run(*arguments):  # as %run does it, from the second time on
    sys.argv = ["main-FMNIST.py", *arguments]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    module.__file__ = sys.argv[0]
    del module.__spec__
    print("RUN")
    try:
        exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), vars(module))
    except SystemExit as stop:
        print("status", stop.code)
def edit(script, old, new):
    text = open(script).read()
    assert old in text
    open(script, "w").write(text.replace(old, new))
sys.stdout, arguments = Stream(sys.stdout), sys.argv[1:]
run("--help")
run(*arguments)
edit("main-FMNIST.py", "Testing the", "Measuring the")
edit("util-FMNIST.py", "Test results", "Results")
edit("model-FMNIST.py", "# as published", "# edited")
run(*arguments)
edit("model-FMNIST.py", 'Dense(num_classes, "softmax"', 'Dense(11, "softmax"')
run(*arguments)
"""


@pytest.fixture(scope="module")
def notebook_begun(tmp_path_factory, data_dir):
    """The program in a process like a Jupyter kernel. It runs while other tests do."""
    only_tyler = ("NETWORKS = .*}", 'NETWORKS = {"tyler": build_tyler}')
    folder = tmp_path_factory.mktemp("notebook")
    script = copy_scripts(folder, "model-FMNIST.py", *only_tyler) / "notebook.py"
    script.write_text(NOTEBOOK)
    arguments = ("--no-sweep", "--epochs", 1, "--jobs", 1, "--data-dir", data_dir)
    with started(*arguments, script=script, cwd=folder) as process:
        yield process


@pytest.mark.usefixtures("notebook_begun")  # it runs beside this
def test_evaluate_describes_each_file_and_writes_nothing(
    whole, capsys, make_idx_dir, main, data, tmp_path
):
    """A bad file does not keep it from the others: one of ours, and a model of somebody
    who gives logits and trained on pixels from 0 to 255."""
    import keras

    (images, labels), folder = data[2], make_idx_dir(tmp_path / "data", 750, 100)
    x = images[..., None] * np.float32(1)
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    theirs = keras.Sequential(layers)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    theirs.compile("adam", loss, metrics=["accuracy"])
    theirs.fit(x, labels, batch_size=10, epochs=9, verbose=0)
    theirs.layers[-1].bias.assign(np.arange(10))  # misleads it on smaller pixels
    theirs.save(tmp_path / "theirs.keras")
    (tmp_path / "bad.h5").write_text("<html>")
    shutil.copy(whole.folder / "models/model_tyler_1.h5", tmp_path / "ours.h5")
    files = [str(tmp_path / name) for name in ("bad.h5", "ours.h5", "theirs.keras")]
    before = {*tmp_path.iterdir()}
    with pytest.raises(SystemExit, match="2"):
        main.main(["--data-dir", str(folder), "--evaluate", *files])
    output, error = capsys.readouterr()
    warning, bad = error.splitlines()
    assert warning.startswith(f"Warning: the files in {folder} are not Fashion-MNIST")
    assert files[0] in bad and "web page" in bad
    assert {*tmp_path.iterdir()} == before
    _, ours, logits = output.split(f"\n{tmp_path}/")
    [row] = rows(whole.folder / "models/results.csv", **final("tyler_1"), seed=7)
    means = [f"{float(row[score]):.2f}" for score in SCORES[2:]]
    assert re.search("macro avg +" + " +".join(means), ours)
    assert " ".join(f"{score} {float(row[score]):.4f}" for score in SCORES) in ours
    saved = description(files[1])
    versions = [f"{name}_version" for name in ("tensorflow", "keras", "numpy")]
    for field in (*main.Setting._fields, "seed", "training_images", *versions):
        assert re.search(rf"^{field} +{saved[field]}$", ours, re.MULTILINE)
    assert ours.count("rate 0.3") == 1 and ours.count("L2 0.001") == 5
    assert "Ankle boot" in ours and "0 to 255" not in ours and "logits" not in ours
    raw, small = [theirs.evaluate(pixels, labels, verbose=0) for pixels in (x, x / 255)]
    assert "Its outputs are logits" in logits
    assert f"loss {small[0]:.4f} accuracy {small[1]:.4f} " in logits
    assert f"pixels from 0 to 255: on those, accuracy {raw[1]:.4f}\n" in logits


def test_a_notebook_runs_it_again_and_again_as_it_is_edited(notebook_begun):
    output, error = notebook_begun.communicate(timeout=200)
    assert "Traceback" not in error
    _, about, first, second, third = output.split("RUN\n")
    assert about.startswith("usage: ") and about.endswith("status 0\n")
    assert first.startswith("2 trials, 0 of them trained") and "Testing the" in first
    assert second.startswith("2 trials, 2 of them trained")  # only words were edited
    assert "Measuring the" in second and "\nResults" in second
    assert third == "status 2\n" and "(11,)" in error.splitlines()[-1]


# --------------------------------------------------------------------------- cluster
@pytest.fixture
def cluster(tmp_path_factory):
    """A Dask scheduler here: its address, its process, a function that adds a worker
    which starts in a folder with scripts, and one that waits for so many workers."""
    import distributed

    contact, processes = tmp_path_factory.mktemp("dask") / "scheduler.json", []

    def launch(folder, *arguments):
        command = [sys.executable, "-m", "dask", *arguments, "--host=127.0.0.1"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, cwd=folder, **quiet))
        return processes[-1]

    def add_worker(threads=1, folder=PROJECT):
        options = ("--no-nanny", "--no-dashboard", f"--nthreads={threads}")
        return launch(folder, "worker", address, *options)

    def wait_for(count):
        with distributed.Client(address, set_as_default=False) as client:
            while len(client.nthreads()) != count:
                time.sleep(0.05)

    options = ("--port=0", "--no-dashboard", f"--scheduler-file={contact}")
    scheduler = launch(PROJECT, "scheduler", *options)
    while not contact.exists() and scheduler.poll() is None:
        time.sleep(0.05)
    address = json.loads(contact.read_text())["address"]
    yield SimpleNamespace(
        address=address, scheduler=scheduler, add_worker=add_worker, wait_for=wait_for
    )
    for process in processes:
        process.kill()
        process.wait()


def test_a_cluster_trains_the_same_and_may_lose_a_worker(
    whole, call, cluster, model, util, four, tmp_path, monkeypatch
):
    monkeypatch.delitem(model.NETWORKS, "jackson")  # to be fast
    arguments = (*four(tmp_path / "out"), "--cluster", cluster.address)
    assert "--nthreads 1" in call(*arguments, status=2)  # there is no worker
    edited = copy_scripts(
        tmp_path / "edited", SCRIPT, "return key, .*?\n", "return key, b''\n"
    )
    for threads, folder, words in (
        (2, PROJECT, "--nthreads 1"), (1, edited, "a worker's scripts"),
    ):  # fmt: skip
        worker = cluster.add_worker(threads, folder)
        cluster.wait_for(1)
        assert words in call(*arguments, status=2)
        worker.kill()
        cluster.wait_for(0)
    lost, write_whole = cluster.add_worker(), util.write_whole

    def lose_the_worker(path, content):
        if lost.poll() is None:
            lost.kill()
            lost.wait()
            cluster.add_worker()
        write_whole(path, content)

    def lose_the_scheduler(path, content):
        cluster.scheduler.kill()
        write_whole(path, content)

    cluster.wait_for(1)
    monkeypatch.setattr(util, "write_whole", lose_the_worker)
    output = call(*arguments)
    assert output.startswith("2 trials, 0 of them trained before")
    assert_same_models(tmp_path / "out", whole.folder, count=2)
    monkeypatch.setattr(util, "write_whole", lose_the_scheduler)
    monkeypatch.setattr(util, "TIMEOUT", 2)
    line = call(*arguments, "--seed", 9, status=2)
    assert "--cluster tcp://" in line and "the same command continues" in line


@pytest.mark.usefixtures("without_workers")
def test_an_address_that_is_no_cluster_is_told_in_one_line(
    call, four, util, tmp_path, monkeypatch
):
    monkeypatch.setattr(util, "TIMEOUT", 1)
    handler = http.server.BaseHTTPRequestHandler
    monkeypatch.setattr(handler, "log_message", lambda *_: None)
    web = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with web, socket.create_server(("127.0.0.1", 0)) as silent:  # it never answers
        for port in (web.server_port, silent.getsockname()[1], 1):
            named = f"--cluster tcp://127.0.0.1:{port}"
            assert named in call(*four(tmp_path), *named.split(), status=2)
        web.shutdown()


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


def test_readme_has_what_the_program_reports(published, main, util, capsys):
    tests = {}
    for row in rows(MODELS_DIR / "results.csv"):
        with_l2 = row["use_regularizer"] == "True"
        setting = main.Setting(row["architecture"], with_l2, 0.3, 0.001, 128, 50)
        scores = {score: float(row[score]) for score in SCORES}
        tests.setdefault(setting, []).append((scores, None))
    util.report_results(tests)
    lines = capsys.readouterr().out.splitlines()[2:]
    for network, mean, deviation in zip(NETWORKS, lines[0:8:2], lines[1:8:2]):
        loss, accuracy = zip(mean.split()[-5:][:2], deviation.split())
        cell = " ".join(accuracy) + ", " + " ".join(loss)
        assert f" | {cell.replace('±', '± ')} | " in table_row(network)
    published = re.findall(r"^\| ([TJ][^|]*) \| (0\.\d+), ", README, re.MULTILINE)
    assert {name: float(accuracy) for name, accuracy in published} == main.PUBLISHED
    for line in lines[9:12]:
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
        which |= {"use_regularizer": bool(with_l2), "architecture": "tyler"}
        [row] = rows(MODELS_DIR / "study.csv", **which)
        numbers = {key: float(row[key]) for key in [*row][4:]}
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
        assert description(path)["training_images"] == 48_000


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
    assert (tmp_path / "as-the-network-sees-it.png").exists()
    assert (tmp_path / "my-model.keras").exists()
