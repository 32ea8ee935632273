"""The helpers: the data and its sources, files, saved models, pictures."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import PROJECT, synthetic_images, write_idx
from keras import layers
from matplotlib import pyplot


@contextlib.contextmanager
def refused(util, *words):
    """What is inside must raise InputError: one line that has all of `words`."""
    with pytest.raises(util.InputError) as caught:
        yield
    message = str(caught.value)
    assert message.isprintable()
    assert [word for word in map(str, words) if word not in message] == []


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# --------------------------------------------------------- the data and its sources


def test_last_fifth_of_the_training_images_validates(util, idx_dir):
    parts = util.load_data(idx_dir(train=13, test=7))
    images, labels = synthetic_images(13)
    fifths = (images[:10], labels[:10]), (images[10:], labels[10:])
    for (x, y), (images, labels) in zip(parts, [*fifths, synthetic_images(7)]):
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, np.eye(10)[labels])
        assert (x.dtype, y.dtype) == (np.uint8, np.float32)


def test_real_data_is_whole_and_split_as_published(util, real_data_dir):
    parts = util.load_data(real_data_dir)
    assert [len(x) for x, _ in parts] == [48_000, 12_000, 10_000]
    (_, train), (_, validation), (_, test) = parts
    assert (train.sum(0) + validation.sum(0)).tolist() == [6000] * 10
    assert test.sum(0).tolist() == [1000] * 10
    first = [util.CLASS_NAMES[i] for i in train[:4].argmax(1)]
    assert first == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]
    quick = util.load_data(real_data_dir, quick=True)
    assert [len(x) for x, _ in quick] == [4800, 1200, 2000]
    assert all((x == whole[: len(x)]).all() for (x, _), (whole, _) in zip(quick, parts))


FAULTS = {  # the number of the file, what is done to it
    "missing": (0, Path.unlink),
    "no folder": (0, lambda path: shutil.rmtree(path.parent)),
    "cut": (2, lambda path: os.truncate(path, 9999)),
    "damaged": (0, lambda path: flip_bit(path, 9999)),
    "not gzip": (3, lambda path: path.write_text("text")),
    "images for labels": (1, lambda path: write_idx(path, np.zeros((100, 28, 28)))),
    "other size": (2, lambda path: write_idx(path, np.zeros((100, 28, 27)))),
    "other count": (1, lambda path: write_idx(path, np.zeros(99))),
    "other length": (3, lambda path: path.write_bytes(path.read_bytes() * 2)),
    "label 10": (3, lambda path: write_idx(path, np.full(100, 10))),
}


@pytest.mark.parametrize("number, spoil", FAULTS.values(), ids=FAULTS)
def test_bad_file_is_named_in_one_line(util, idx_dir, number, spoil):
    path = idx_dir(100, 100) / util.DATA_FILES[number]
    spoil(path)
    with refused(util, path):
        util.load_data(path.parent)


def send(request, content, cut=False):
    """Answer with this content, but for the last byte if that is cut."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content[: len(content) - cut])


@pytest.fixture
def host(util, monkeypatch, tmp_path, idx_dir):
    """Keras's host, on a machine that has no data: `answer` is how it sends a file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path.strip("/"))
            server.answer(self, (idx_dir() / server.asked[-1]).read_bytes())

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no apt-get
    monkeypatch.setattr(util, "DEBIAN_DIR", tmp_path / "debian")
    monkeypatch.setattr(util, "TIMEOUT", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer = [], send
        server.cache = tmp_path / "datasets" / "fashion-mnist"
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        monkeypatch.setattr(util, "DATA_URL", f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()


def test_sources_are_tried_in_their_order(util, host, make_idx_dir):
    make_idx_dir(util.DEBIAN_DIR)
    assert util.find_data() == util.DEBIAN_DIR
    make_idx_dir(host.cache)
    assert util.find_data() == host.cache
    for name in util.DATA_FILES[2:]:
        (host.cache / name).unlink()
    assert util.find_data() == util.DEBIAN_DIR  # the cache has not all files
    assert host.asked == []
    shutil.rmtree(util.DEBIAN_DIR)
    assert util.find_data() == host.cache
    assert host.asked == [*util.DATA_FILES[2:]]  # the others were there
    assert files(host.cache) == {*util.DATA_FILES}
    assert [len(x) for x, _ in util.load_data(host.cache)] == [480, 120, 100]


HOSTS = {  # how it sends a file
    "hangs": lambda request, content: time.sleep(5),
    "cuts the third": lambda request, it: send(request, it, "t10k" in request.path),
    "shows a web page": lambda request, content: send(request, b"<html>Log in</html>"),
}


@pytest.mark.parametrize("answer", HOSTS.values(), ids=HOSTS)
def test_when_all_sources_fail_one_line_lists_them(util, host, answer):
    host.answer = answer
    started = time.monotonic()
    tried = host.cache, util.DEBIAN_DIR, util.DATA_URL, util.DEBIAN_PACKAGE
    with refused(util, *tried, "--data-dir", *util.DATA_FILES):
        util.find_data()
    assert time.monotonic() - started < 4
    assert list(host.cache.iterdir()) == []


def test_debian_package_is_the_last_resort(util, host, idx_dir, tmp_path, monkeypatch):
    host.answer, folder = HOSTS["shows a web page"], f'"$3{util.DEBIAN_DIR}"'
    programs = {
        "apt-get": 'case "$*" in *" download dataset-fashion-mnist") touch it.deb; esac',
        "dpkg-deb": f"[ -f $2 ] && mkdir -p {folder} && cp {idx_dir()}/* {folder}",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert util.find_data() == host.cache
    assert files(host.cache) == {*util.DATA_FILES}


# ------------------------------------------------------------------------ the files


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)) for path in paths}


def test_results_are_published_together_and_trials_outlive_an_error(util, tmp_path):
    with contextlib.suppress(KeyError), util.output_folders(tmp_path) as (kept, new, _):
        (new / "half.h5").touch()
        (tmp_path / "models" / "my").touch()
        trial = util.keep_trial(kept, "key", b"content")
        raise KeyError
    assert files(tmp_path) == {"models/my", ".trials/lock", f".trials/{trial.name}"}
    with util.output_folders(tmp_path) as (kept, models, plots):
        assert util.find_kept_trials(kept) == {"key": trial}
        (models / "whole.h5").touch()
        (plots / "whole.png").touch()
        assert not {"models/whole.h5", "plots/whole.png"} & files(tmp_path)
    assert files(tmp_path) == {"models/my", "models/whole.h5", "plots/whole.png"}


def test_second_run_is_refused_until_the_first_one_dies(util, tmp_path):
    script = (
        "import importlib, pathlib, time\n"
        "util = importlib.import_module('util-FMNIST')\n"
        f"with util.output_folders(pathlib.Path({str(tmp_path)!r})) as (kept_dir, *_):\n"
        "    util.keep_trial(kept_dir, 'key', b'content')\n"
        "    print('ready', flush=True), time.sleep(20)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as process:
        assert process.stdout.readline() == b"ready\n"
        with refused(util, tmp_path), util.output_folders(tmp_path, fresh=True):
            pytest.fail("two runs at work")
        assert list(util.find_kept_trials(tmp_path / ".trials")) == ["key"]
        process.kill()
    with util.output_folders(tmp_path, fresh=True) as (kept_dir, *_):
        assert util.find_kept_trials(kept_dir) == {}


def test_file_in_a_folders_place_is_noticed_before_the_work(util, tmp_path):
    (tmp_path / "plots").touch()
    with pytest.raises(OSError, match="plots"), util.output_folders(tmp_path):
        pytest.fail("the work began")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second disk")
def test_models_may_lie_on_another_disk(util, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "models").symlink_to(elsewhere)
        with util.output_folders(tmp_path) as (_, model_dir, _):
            (model_dir / "model.h5").touch()
        assert os.listdir(elsewhere) == ["model.h5"]


def test_kept_trial_with_a_flipped_bit_does_not_count(util, saved, tmp_path):
    content = saved.read_bytes()
    weights = keras.models.load_model(saved).get_weights()[0].tobytes()
    for position in (0, content.index(b"class_name"), content.index(weights), -1):
        path = util.keep_trial(tmp_path, "key", content)
        assert util.find_kept_trials(tmp_path) == {"key": path}
        flip_bit(path, position)
        assert util.find_kept_trials(tmp_path) == {}


def test_key_of_a_trial_depends_on_its_seed_and_on_the_data(util):
    trials = [("tyler", 0.3, 0), ("tyler", 0.3, 1)]
    images, labels = synthetic_images(10)
    keys = util.trial_keys(trials, (images, labels))
    assert keys == util.trial_keys(trials, synthetic_images(10))
    images[9, 27, 27] += 1
    others = util.trial_keys(trials, (images, labels))
    assert len({*keys.values(), *others.values()}) == 4


# -------------------------------------------------------------------- saved models

IMAGES = np.random.default_rng(0).random((20, 28, 28), dtype="float32")


def predict(network):
    return np.array(network(IMAGES.reshape(-1, *network.input_shape[1:])))


def assert_same(probabilities, expected):
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)


def sequential(*shape, classes=10, last="softmax"):
    parts = [layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(classes, last)]
    return keras.Sequential([keras.Input(shape), *parts])


def functional():
    image = keras.Input((28, 28))
    hidden = layers.Dense(8, "gelu", kernel_regularizer="l1")(layers.Flatten()(image))
    return keras.Model(image, layers.Dense(10, "softmax")(layers.Dropout(0.3)(hidden)))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A file with a small classifier."""
    path = tmp_path_factory.mktemp("saved") / "model.h5"
    sequential(28, 28).save(path)
    return path


def test_model_and_history_survive_in_one_file(util, model, tmp_path):
    network = model.build_tyler(use_regularizer=True)
    network.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    network.optimizer.build(network.trainable_variables)
    path = tmp_path / "model.h5"
    history = {metric: np.array([0.5, np.nan]) for metric in util.METRICS}
    path.write_bytes(util.to_hdf5(network, history))
    np.testing.assert_equal(util.read_history(path), history)
    assert_same(predict(util.load_classifier(path)), predict(network))
    assert not util.load_classifier(path).compiled  # a loss may name anything
    keras.models.load_model(path).fit(IMAGES, np.eye(10)[[*range(10)] * 2], verbose=0)


OTHERS = {
    "functional": functional,
    "flat images": lambda: sequential(784),
    "images with a channel": lambda: sequential(28, 28, 1),
    "logits": lambda: sequential(28, 28, last="linear"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_classifiers_load_and_give_probabilities(util, tmp_path, kind):
    network = OTHERS[kind]()
    network.save(tmp_path / "model.h5")
    expected = predict(network)
    if kind == "logits":
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    assert_same(predict(util.load_classifier(tmp_path / "model.h5")), expected)


def write_keras2_file(path, network, dtype=None, data_format=None):
    """Write `network`, made by sequential(28, 28), in the layout of Keras 2.6."""
    flatten, hidden, last = (layer.name for layer in network.layers)
    shape = {"batch_input_shape": [None, 28, 28], "dtype": dtype}
    dense = {"kernel_regularizer": {"class_name": "L2", "config": {}}, "dtype": dtype}
    parts = [
        ("InputLayer", {"name": "image", "sparse": False, "ragged": False, **shape}),
        ("Flatten", {"name": flatten, "data_format": data_format, **shape}),
        ("Dense", {"name": hidden, "units": 8, "activation": "relu", **dense}),
        ("Dense", {"name": last, "units": 10, "activation": "softmax", **dense}),
    ]
    parts = [{"class_name": kind, "config": config} for kind, config in parts]
    net = {"class_name": "Sequential", "config": {"name": "net", "layers": parts}}
    with h5py.File(path, "w") as file:
        file.attrs.update(keras_version=b"2.6.0", model_config=json.dumps(net).encode())
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [layer.name.encode() for layer in network.layers]
        for layer in network.layers:
            weights = {f"{layer.name}/{w.name}:0": w.numpy() for w in layer.weights}
            part = group.create_group(layer.name)
            part.attrs["weight_names"] = [name.encode() for name in weights]
            part.update(weights)


def test_keras_json_and_keras_2_change_no_probability(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    network = keras.models.load_model(saved)
    paths = [saved, tmp_path / "2.6.h5", tmp_path / "older.h5"]
    write_keras2_file(paths[1], network, "float32", "channels_last")
    write_keras2_file(paths[2], network)  # leaves these settings to Keras
    settings = {"floatx": "float64", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps({**settings, "backend": "jax"}))
    script = (
        "import importlib, json, numpy, sys\n"
        "util = importlib.import_module('util-FMNIST')\n"
        "images = numpy.random.default_rng(0).random((20, 28, 28), 'float32')\n"
        "models = [util.load_classifier(path) for path in sys.argv[1:]]\n"
        "print(json.dumps([model(images).numpy().tolist() for model in models]))\n"
    )
    command = [sys.executable, "-c", script, *paths]
    output = subprocess.check_output(command, cwd=PROJECT, stderr=subprocess.STDOUT)
    found = json.loads(output)  # a warning would not be JSON
    assert_same(found, [predict(network)] * 3)
    assert (np.float32(found) == found).all()  # no double precision


def forge(path, old, new):
    """Replace text in a saved model's description."""
    with h5py.File(path, "a") as file:
        text = file.attrs["model_config"]
        assert old in text
        file.attrs["model_config"] = text.replace(old, new)


FUNCTION = '{"class_name": "function", "module": "builtins", "config": "relu"}'
REFUSED = {  # what is done to a valid file, what the message must name
    "other layer": (lambda it: forge(it, '"Flatten"', '"Conv2D"'), "Conv2D"),
    "custom class": (lambda it: forge(it, '"Dense"', r'"Evil\n\u001b[31m"'), "Evil"),
    "foreign module": (lambda it: forge(it, '"keras', '"evil'), "evil"),
    "function object": (lambda it: forge(it, '"relu"', FUNCTION), "function"),
    "unknown function": (lambda it: forge(it, '"relu"', r'"evil\n\u001b[31m"'), "evil"),
    "nested too deep": (lambda it: forge(it, "8", "[" * 40_000 + "]" * 40_000), ""),
    "other input": (lambda it: sequential(32, 32).save(it), "(32, 32)"),
    "other classes": (lambda it: sequential(28, 28, classes=5).save(it), "(5,)"),
    "no weights": (lambda it: h5py.File(it, "a").pop("model_weights"), "model_weights"),
    "truncated": (lambda it: os.truncate(it, it.stat().st_size - 100), ""),
    "text": (lambda it: it.write_text("model"), ""),
    "archive": (lambda it: it.rename(it.with_suffix(".keras")), ".h5"),
    "missing": (Path.unlink, "no file"),
    "FIFO": (lambda it: (it.unlink(), os.mkfifo(it)), "no file"),
}


@pytest.mark.parametrize("spoil, word", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_in_one_line(util, saved, tmp_path, spoil, word):
    path = Path(shutil.copy(saved, tmp_path))
    spoil(path)
    path = next(tmp_path.iterdir(), path)  # it may have another name now
    with refused(util, path, word):
        util.load_classifier(path)


def test_code_in_a_lambda_layer_never_runs(util, tmp_path):
    path, marker = tmp_path / "model.h5", str(tmp_path / "marker")
    trap = layers.Lambda(lambda x: [x, open(marker, "w").close()][0])
    parts = [layers.Flatten(), trap, layers.Dense(10, "softmax")]
    keras.Sequential([keras.Input((28, 28)), *parts]).save(path)
    os.unlink(marker)
    with refused(util, path, "Lambda"):
        util.load_classifier(path)
    assert not os.path.exists(marker)
    keras.models.load_model(path, safe_mode=False)
    assert os.path.exists(marker)  # so the trap works


# -------------------------------------------------------------------- the pictures


@pytest.fixture
def figures(monkeypatch):
    """{file name: figure} of what was saved. Nothing is empty, nothing makes a warning."""
    saved, save = {}, pyplot.Figure.savefig

    def record(figure, path):
        save(figure, path)
        saved[path.name] = figure
        pixels = pyplot.imread(path)  # it takes nothing but PNG
        assert min(pixels.shape[:2]) > 400
        assert np.ptp(pixels[..., :3]) > 0.5

    monkeypatch.setattr(pyplot.Figure, "savefig", record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield saved


@pytest.mark.parametrize("seeds, words", [(1, "one seed"), (3, "3 seeds")])
def test_hyperparameters_are_drawn(util, main, tmp_path, figures, seeds, words):
    final = main.Trial("tyler", False, 0.3, 0.001, 128, 50, 0)
    names = ["dropout_rate", "learning_rate", "batch_size", "epochs"]
    points = [
        (name, getattr(final, name) * factor, use_l2, [best - i / 99] * seeds)
        for i, name in enumerate(names)
        for factor, best in ((0.5, 0.8), (1, 0.9), (1.5, 0.85))
        for use_l2 in (False, True)
    ]
    points.append(("learning_rate", 0.01, True, [0.1] * seeds))
    points.append(("epochs", 100, False, [np.nan] * seeds))  # it diverged
    util.plot_hyperparameters(points, final, tmp_path)
    figure = figures["hyperparameters_tyler.png"]
    assert words in figure.get_suptitle()
    limits = {ax.get_xlabel().split(" (")[0]: ax.get_ylim() for ax in figure.axes}
    assert [*limits] == [name.replace("_", " ") for name in names]
    assert limits.pop("learning rate")[0] < 0.1  # it would flatten the other panels
    [(low, high)] = {*limits.values()}
    assert 0.7 < low < 0.8 and 0.9 < high < 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_training_is_drawn_on_the_same_axes(util, tmp_path, figures, seeds):
    histories = {
        (name, use_regularizer): [dict.fromkeys(util.METRICS, values)] * seeds
        for name, values in (("tyler", [0.5, 0.8]), ("jackson", [0.6, np.nan]))
        for use_regularizer in (False, True)
    }
    util.plot_training(histories, tmp_path)
    tyler, jackson = figures["accuracy_tyler.png"], figures["accuracy_jackson.png"]
    for one, other in zip(tyler.axes, jackson.axes):
        assert one.get_ylim() == other.get_ylim()
    assert ("3 seeds" in tyler.get_suptitle()) == (seeds == 3)


def test_rows_of_the_confusion_matrix_are_the_true_classes(util, tmp_path, figures):
    labels = np.repeat([0, 1], [400, 1])
    guesses = np.eye(10)[np.repeat([0, 1, 2, 1], [299, 100, 1, 1])]
    util.plot_confusion_matrix("Tyler + L2", labels, guesses, tmp_path / "matrix.png")
    [axes] = figures["matrix.png"].axes
    assert "Tyler + L2: test accuracy 74.81%" in axes.figure.get_suptitle()
    assert "true" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_yticklabels()] == [*util.CLASS_NAMES]
    cells = np.reshape([text.get_text() for text in axes.texts], (10, 10))
    assert cells[0].tolist() == ["0.75", "0.25", *[""] * 8]  # 0.0025 is left out
    assert cells[1].tolist() == ["", "1.00", *[""] * 8]


def test_surest_mistakes_come_first(util, tmp_path, figures):
    images, labels = synthetic_images(40)
    probabilities = np.eye(10)[labels] * 0.7 + 0.03
    for i, sureness in ((2, np.nan), (3, 0.8), (5, 0.9), (7, 0.99)):
        probabilities[i] = np.eye(10)[(labels[i] + 1) % 10] * sureness
    util.plot_predictions(images, labels, probabilities, tmp_path)
    axes = figures["predictions.png"].axes
    said = [ax.get_title().split(": ")[-1] for ax in axes]
    assert said == ["73.0%"] * 6 + ["99.0%", "90.0%", "80.0%", "nan%", "", ""]
