"""The helpers: the data and its sources, files, saved models, pictures."""

import contextlib
import gzip
import json
import os
import re
import shutil
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import keras
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from conftest import PROJECT, synthetic_images, write_idx
from keras import layers

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]


@contextlib.contextmanager
def refused(util, *words):
    """What is inside must raise InputError: one line that has all of `words`."""
    with pytest.raises(util.InputError) as caught:
        yield
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message


# ------------------------------------------------------------------------- the data


@pytest.mark.parametrize("train, test", [(600, 100), (7, 5)])
def test_last_fifth_of_the_training_images_validates(util, idx_dir, train, test):
    parts = util.load_data(idx_dir(train, test))
    images, labels = synthetic_images(train)
    split = train * 4 // 5
    slices = [(images[:split], labels[:split]), (images[split:], labels[split:])]
    for (x, y), (images, labels) in zip(parts, [*slices, synthetic_images(test)]):
        np.testing.assert_array_equal(x, images)  # in the file's order
        np.testing.assert_array_equal(y, np.eye(10)[labels])
        assert (x.dtype, y.dtype) == (np.uint8, np.float32)


def test_real_data_is_whole_and_split_as_published(util, real_data_dir):
    train, validation, test = util.load_data(real_data_dir)
    for (x, y), count in ((train, 48_000), (validation, 12_000), (test, 10_000)):
        assert x.shape == (count, 28, 28) and y.shape == (count, 10)
        assert (x.min(), x.max()) == (0, 255)
    per_class = train[1].sum(axis=0) + validation[1].sum(axis=0)
    assert per_class.tolist() == [6000] * 10
    assert test[1].sum(axis=0).tolist() == [1000] * 10
    first = [util.CLASS_NAMES[i] for i in train[1][:4].argmax(1)]
    assert first == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]


def rewrite(path, edit=lambda content: content, pack=gzip.compress):
    """Change what is inside a gzip file."""
    path.write_bytes(pack(edit(gzip.decompress(path.read_bytes()))))


def damage(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def dimensions(path):
    return (100, 28, 28) if "images" in path.name else (100,)


FAULTS = {
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "cut in its middle": lambda path: cut(path, path.stat().st_size // 2),
    "cut in gzip's header": lambda path: cut(path, 5),
    "cut in gzip's trailer": lambda path: cut(path, -3),
    "not gzip": lambda path: rewrite(path, pack=bytes),
    "nothing in the gzip": lambda path: rewrite(path, lambda content: b""),
    "cut in its own header": lambda path: rewrite(path, lambda content: content[:6]),
    "damaged in its middle": lambda path: damage(path, path.stat().st_size // 2),
    "wrong checksum": lambda path: damage(path, -8),
    "wrong length in gzip's trailer": lambda path: damage(path, -4),
    "wrong magic number": lambda path: rewrite(path, lambda c: b"\0\0\x0d" + c[3:]),
    "one value too few": lambda path: rewrite(path, lambda content: content[:-1]),
    "one value too many": lambda path: rewrite(path, lambda content: content + b"\0"),
    "a count beyond memory": lambda path: write_idx(
        path, np.zeros(9), shape=(2**32 - 1, *dimensions(path)[1:])
    ),
    "sizes beyond any memory": lambda path: write_idx(
        path, np.zeros(9), shape=(2**32 - 1,) * len(dimensions(path))
    ),
}


@pytest.mark.parametrize("number", range(4), ids=NAMES)
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_file_is_named_in_one_line(util, idx_dir, fault, number):
    folder = idx_dir(100, 100)
    path = folder / NAMES[number]
    FAULTS[fault](path)
    with refused(util, path):
        util.load_data(folder)


@pytest.mark.parametrize(
    "name, array, problem",
    [
        (NAMES[0], np.zeros((100, 27, 28)), "27 x 28"),
        (NAMES[2], np.zeros((100, 28, 29)), "28 x 29"),
        (NAMES[0], np.zeros(100), "magic number"),  # labels in the images' place
        (NAMES[1], np.zeros((100, 28, 28)), "magic number"),
        (NAMES[1], np.zeros(99), "99 labels for 100 images"),
        (NAMES[3], np.zeros(101), "101 labels for 100 images"),
        (NAMES[1], np.full(100, 10), "label 10"),
        (NAMES[3], np.arange(100) * 5 // 2, "label 247"),
    ],
)
def test_wrong_content_is_named_in_one_line(util, idx_dir, name, array, problem):
    folder = idx_dir(100, 100)
    write_idx(folder / name, array)
    with refused(util, folder / name, problem):
        util.load_data(folder)


def test_data_set_without_images_is_refused(util, idx_dir):
    with refused(util, NAMES[1]):
        util.load_data(idx_dir(train=0))


@pytest.mark.parametrize("kind", ["absent", "a file"])
def test_data_dir_that_is_no_folder_is_named(util, tmp_path, kind):
    path = tmp_path / "nowhere"
    if kind == "a file":
        path.touch()
    with refused(util, "--data-dir", path):
        util.load_data(path)


# ------------------------------------------------------------------- its four sources


@pytest.fixture
def cache(util, monkeypatch, tmp_path):
    """Keras's cache, still absent, on a machine where every other source fails."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get here
    monkeypatch.setattr(util, "DEBIAN_DIR", tmp_path / "debian")
    monkeypatch.setattr(util, "DATA_URL", "http://127.0.0.1:9/")  # nobody answers
    monkeypatch.setattr(util, "TIMEOUT", 0.5)
    return tmp_path / "home" / "datasets" / "fashion-mnist"


@pytest.fixture
def serve(util, monkeypatch):
    """serve(reply) makes Keras's host one that sends the bytes reply(name).

    It closes the connection then, unless it `hangs`. Returns the names asked for.
    """
    servers, over = [], threading.Event()

    def start(reply, hangs=False):
        asked = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                asked.append(self.rfile.readline().split()[1].decode().strip("/"))
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(reply(asked[-1]))
                if hangs:
                    over.wait(5)  # by then, the test has failed

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(util, "DATA_URL", url)
        return asked

    yield start
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def http(content, headers=b"", length=None):
    """An HTTP answer; without a header for the length if that is False."""
    if length is not False:
        length = str(len(content) if length is None else length)
        headers += b"Content-Length: " + length.encode() + b"\r\n"
    return b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + content


def chunked(content, end=b"0\r\n\r\n"):
    """An HTTP answer in one chunk; cut short without its `end`."""
    body = b"%x\r\n%s\r\n%s" % (len(content), content, end)
    return http(body, b"Transfer-Encoding: chunked\r\n", length=False)


def data_files(folder):
    """The data's files that are there, at any depth."""
    return [path for path in folder.rglob("*") if path.name in NAMES]


def test_data_dir_comes_before_all_other_sources(util, cache, make_idx_dir, idx_dir):
    make_idx_dir(cache)
    assert util.find_data(idx_dir()) == idx_dir()


def test_keras_cache_comes_before_debian(util, cache, make_idx_dir):
    make_idx_dir(cache)
    make_idx_dir(util.DEBIAN_DIR)
    assert util.find_data() == cache


def test_cache_is_in_the_home_folder_by_default(
    util, cache, make_idx_dir, monkeypatch, tmp_path
):
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    folder = make_idx_dir(tmp_path / "me/.keras/datasets/fashion-mnist")
    assert util.find_data() == folder


def test_debian_comes_before_a_download(util, cache, make_idx_dir, serve):
    asked = serve(lambda name: b"")
    make_idx_dir(util.DEBIAN_DIR)
    make_idx_dir(cache)
    (cache / NAMES[3]).unlink()  # a cache that lacks a file does not count
    assert util.find_data() == util.DEBIAN_DIR
    assert asked == []


@pytest.mark.parametrize("headers", ["length", "chunked", "no length"])
def test_download_lands_whole_in_the_cache_and_shows_progress(
    util, cache, idx_dir, serve, capsys, headers
):
    pack = {
        "length": http,
        "chunked": chunked,
        "no length": lambda content: http(content, length=False),
    }
    source = idx_dir()
    asked = serve(lambda name: pack[headers]((source / name).read_bytes()))
    assert util.find_data() == cache
    assert {path.name for path in cache.iterdir()} == set(NAMES)
    for name in NAMES:
        assert (cache / name).read_bytes() == (source / name).read_bytes()
    shown = capsys.readouterr().out
    assert all(name in shown for name in (util.DATA_URL, *NAMES))
    util.load_data()
    assert asked == NAMES  # nothing is fetched a second time


HOSTS = {  # what it sends, whether it leaves the connection open
    "never answers": (lambda name: b"", True),
    "stops in the headers": (lambda name: b"HTTP/1.1 200 OK\r\n", True),
    "stops in the file": (lambda name: http(b"half", length=99), True),
    "hangs up": (lambda name: b"", False),
    "cuts the file": (lambda name: http(b"half", length=99), False),
    "cuts a chunked file": (lambda name: chunked(b"half", end=b""), False),
    "cuts a file of unknown length": (lambda name: http(b"", length=False), False),
    "has no such file": (lambda name: b"HTTP/1.1 404 Not Found\r\n\r\n", False),
    "answers with a web page": (lambda name: http(b"<html>Log in</html>"), False),
    "talks another protocol": (lambda name: b"SSH-2.0-OpenSSH\r\n", False),
    "gives no number as length": (lambda name: http(b"", length="many"), False),
    "sends other data": (lambda name: http(gzip.compress(name.encode())), False),
}


# An exception in a thread would be a traceback on the user's terminal.
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("host", HOSTS)
def test_host_that_fails_is_given_up_in_time_and_leaves_nothing(
    util, cache, serve, host
):
    serve(*HOSTS[host])
    started = time.monotonic()
    with refused(util, cache, util.DEBIAN_DIR, util.DATA_URL, "--data-dir", *NAMES):
        util.find_data()
    assert time.monotonic() - started < util.TIMEOUT + 3
    assert data_files(cache) == []


@pytest.mark.parametrize("good", [1, 3])
def test_download_that_breaks_off_later_leaves_nothing(
    util, cache, serve, idx_dir, good
):
    source = idx_dir()

    def reply(name):
        content = (source / name).read_bytes()
        whole = NAMES.index(name) < good
        return http(content if whole else content[:-20], length=len(content))

    serve(reply)
    with refused(util, "--data-dir"):
        util.find_data()
    assert data_files(cache) == []


@pytest.fixture
def apt(cache, idx_dir, tmp_path, monkeypatch, util):
    """apt(script) puts an apt-get on the PATH, and a dpkg-deb that unpacks the data."""
    unpack = f'[ "$1" = -x ] && [ -f "$2" ] && mkdir -p "$3{util.DEBIAN_DIR}" && '
    unpack += f'cp {idx_dir()}/*.gz "$3{util.DEBIAN_DIR}"'

    def install(script):
        for name, body in (("apt-get", script), ("dpkg-deb", unpack)):
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_debian_package_is_the_last_resort(util, cache, apt, tmp_path):
    log = tmp_path / "log"
    apt(f'echo "$@" >> {log}; case "$*" in *download*) touch data.deb;; esac')
    assert util.find_data() == cache
    assert {path.name for path in cache.iterdir()} == set(NAMES)
    update, download = log.read_text().splitlines()
    assert update.endswith(" update")
    assert download.endswith(" download dataset-fashion-mnist")
    lists = re.search(r"Dir::State::lists=(\S+)", update)[1]
    assert Path(lists).is_relative_to(cache)  # so it takes no root


@pytest.mark.parametrize(
    "script, reason",
    [
        ("echo E: no such package >&2; exit 100", "E: no such package"),
        ("exit 100", "100"),
        ("true", NAMES[0]),  # claims success but leaves nothing
    ],
)
def test_failing_apt_is_reported_with_its_reason(util, cache, apt, script, reason):
    apt(script)
    with refused(util, "dataset-fashion-mnist", reason, "--data-dir"):
        util.find_data()
    assert data_files(cache) == []


def test_cache_that_cannot_be_written_is_reported(util, cache, tmp_path):
    (tmp_path / "home").touch()  # a file where a folder should be
    with refused(util, cache, "--data-dir"):
        util.find_data()


# ------------------------------------------------------------------------ the files


def test_write_whole_replaces_the_content(util, tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        util.write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_write_leaves_the_old_content(util, tmp_path, monkeypatch, step):
    def fail(*arguments):
        raise OSError("no space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        util.write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_csv_has_a_header_and_a_row_per_dict(util, tmp_path):
    rows = [{"name": "a,b", "value": 0.1}, {"name": "c", "value": float("nan")}]
    util.write_csv(tmp_path / "table.csv", rows)
    lines = (tmp_path / "table.csv").read_bytes().decode()
    assert lines == 'name,value\n"a,b",0.1\nc,nan\n'


def test_working_folder_keeps_its_files_unless_fresh(util, tmp_path):
    with util.working_folder(tmp_path / "a" / "b") as folder:
        (folder / "kept.h5").touch()
    with util.working_folder(tmp_path / "a" / "b") as folder:
        assert (folder / "kept.h5").exists()
    with util.working_folder(tmp_path / "a" / "b", fresh=True) as folder:
        assert folder.is_dir() and not (folder / "kept.h5").exists()


def test_second_run_is_refused_and_does_no_harm(util, tmp_path):
    with util.working_folder(tmp_path) as folder:
        (folder / "kept.h5").touch()
        with (
            refused(util, tmp_path, "--output-dir"),
            util.working_folder(tmp_path, fresh=True),
        ):
            pass
        assert (folder / "kept.h5").exists()


def test_lock_ends_with_its_process_however_that_ends(util, tmp_path):
    script = (
        "import importlib, pathlib, time\n"
        "util = importlib.import_module('util-FMNIST')\n"
        f"with util.working_folder(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(20)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as process:
        assert process.stdout.readline() == b"locked\n"
        with refused(util, tmp_path), util.working_folder(tmp_path):
            pass
        process.kill()
    with util.working_folder(tmp_path) as folder:
        assert folder.is_dir()


def test_error_inside_the_working_folder_is_not_taken_for_a_lock(util, tmp_path):
    with pytest.raises(BlockingIOError, match="busy"), util.working_folder(tmp_path):
        raise BlockingIOError("the terminal is busy")


def test_results_go_public_only_when_all_are_written(util, tmp_path):
    work, target = tmp_path / "work", tmp_path / "models" / "model.h5"
    failing = util.publication(work, tmp_path)
    with contextlib.suppress(ZeroDivisionError), failing as (models, plots):
        (models / "model.h5").write_text("half a run")
        raise ZeroDivisionError
    assert not target.exists()
    with util.publication(work, tmp_path) as (models, plots):
        (models / "model.h5").write_text("whole")
        (plots / "plot.png").write_text("picture")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert (tmp_path / "plots" / "plot.png").read_text() == "picture"


def test_digest_depends_on_the_data(util):
    one, other = np.zeros(9), np.zeros(9)
    assert util.digest(one) == util.digest(other)
    other[8] = 1
    assert util.digest(one) != util.digest(other)


def test_history_survives_in_the_model_file(util, model, tmp_path):
    network = model.build_tyler()
    network.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    history = {metric: [0.5, float("inf")] for metric in util.METRICS}
    path = tmp_path / "model.h5"
    path.write_bytes(util.to_hdf5(network, history))
    assert util.read_history(path) == history
    assert_predicts(util.load_classifier(path), network)
    cut(path, -100)
    assert util.read_history(path) is None
    assert util.read_history(tmp_path / "absent") is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["loss", "val_loss"])
def test_diverged_training_has_no_accuracy_from_there_on(util, loss, which):
    history = {"loss": [2.0, 1.0], "val_loss": [2.0, 1.0], "val_accuracy": [0.5, 0.6]}
    assert not util.diverged(history)
    assert [util.accuracy_after(history, n) for n in (1, 2)] == [0.5, 0.6]
    history[which][-1] = loss
    assert util.diverged(history)
    assert util.accuracy_after(history, 1) == 0.5
    assert np.isnan([util.accuracy_after(history, n) for n in (2, 3)]).all()


# ------------------------------------------------------- saved models that are taken

IMAGES = np.random.default_rng(0).random((20, 28, 28), dtype="float32")


def assert_predicts(network, expected):
    """Compare with another network or with an array of probabilities, on IMAGES."""
    if isinstance(expected, keras.Model):
        expected = expected(IMAGES.reshape(-1, *expected.input_shape[1:]))
    found = network(IMAGES.reshape(-1, *network.input_shape[1:]), training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def numpy_predictions(weights):
    """Class probabilities of a ReLU network with [(kernel, bias), ...]."""
    x = IMAGES.reshape(len(IMAGES), -1)
    for kernel, bias in weights:
        logits = x @ kernel + bias
        x = np.maximum(logits, 0)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("optimizer", [None, "adam"])
@pytest.mark.parametrize("use_regularizer", [False, True])
@pytest.mark.parametrize("name", ["tyler", "jackson"])
def test_our_own_models_load(util, model, tmp_path, name, use_regularizer, optimizer):
    network = getattr(model, f"build_{name}")(use_regularizer=use_regularizer)
    if optimizer:
        network.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    network.save(tmp_path / "model.h5")
    loaded = util.load_classifier(tmp_path / "model.h5")
    assert_predicts(loaded, network)
    assert not loaded.compiled
    assert float(sum(loaded.losses)) == pytest.approx(float(sum(network.losses)))


def functional():
    image = keras.Input((28, 28))
    x = layers.Flatten()(image)
    return keras.Model(image, layers.Dense(10, "softmax")(layers.Dense(8, "relu")(x)))


def elaborate():
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(8, "elu", kernel_regularizer=keras.regularizers.L1L2(0.1)),
            layers.Dense(8, "gelu", kernel_initializer="he_normal", use_bias=False),
            layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L1(0.1)),
            layers.Dropout(0.5),
            layers.Dense(10, "softmax", bias_regularizer="l2"),
        ]
    )


def sequential(*shape, last="softmax"):
    parts = [layers.Flatten()] * (len(shape) > 1)
    parts += [layers.Dense(8, "relu"), layers.Dense(10, last)]
    return keras.Sequential([keras.Input(shape), *parts])


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(functional, id="functional"),
        pytest.param(elaborate, id="elaborate"),
        pytest.param(lambda: sequential(784), id="flat images"),
        pytest.param(lambda: sequential(28, 28, 1), id="images with a channel"),
    ],
)
def test_other_fully_connected_classifiers_load(util, tmp_path, network):
    network = network()
    network.save(tmp_path / "model.h5")
    assert_predicts(util.load_classifier(tmp_path / "model.h5"), network)


@pytest.mark.parametrize("loss", [None, keras.losses.CategoricalCrossentropy])
def test_logits_become_probabilities(util, tmp_path, loss):
    network = sequential(28, 28, last=None)
    if loss:
        network.compile("sgd", loss(from_logits=True), metrics=["accuracy"])
    network.save(tmp_path / "model.h5")
    weights = network.get_weights()
    probabilities = numpy_predictions([weights[:2], weights[2:]])
    assert_predicts(util.load_classifier(tmp_path / "model.h5"), probabilities)


@pytest.mark.parametrize("last", ["softmax", None])
@pytest.mark.parametrize("odd", ["network in a network", "dropout at the end"])
def test_odd_network_is_taken_right_or_not_at_all(util, tmp_path, odd, last):
    path, network = tmp_path / "model.h5", sequential(28, 28, last=last)
    weights = network.get_weights()
    if odd == "dropout at the end":
        network.add(layers.Dropout(0.3))
    else:
        network = keras.Sequential([keras.Input((28, 28)), network])
    network.save(path)
    try:
        loaded = util.load_classifier(path)
    except util.InputError as error:
        assert str(path) in str(error)
        return
    assert_predicts(loaded, numpy_predictions([weights[:2], weights[2:]]))


def keras2_layer(kind, name, **config):
    """A layer's description as Keras 2 wrote it."""
    common = {"name": name, "trainable": True, "dtype": "float32"}
    return {"class_name": kind, "config": {**common, **config}}


def keras2_dense(name, units, activation, **config):
    return keras2_layer(
        "Dense", name, units=units, activation=activation, use_bias=True,
        kernel_initializer={"class_name": "GlorotUniform", "config": {"seed": None}},
        bias_initializer={"class_name": "Zeros", "config": {}},
        kernel_regularizer={"class_name": "L2", "config": {"l2": 0.001}},
        bias_regularizer=None, activity_regularizer=None, kernel_constraint=None,
        bias_constraint=None, **config,
    )  # fmt: skip


def keras2_input(name, *shape):
    config = {"batch_input_shape": [None, *shape], "dtype": "float32"}
    config |= {"sparse": False, "ragged": False, "name": name}
    return {"class_name": "InputLayer", "config": config}


def keras2_description(kind):
    """A network's description as Keras 2 wrote it: `kind` is one of KERAS_2."""
    shape = [None, 784] if "flat" in kind else [None, 28, 28]
    first = keras2_input("image", *shape[1:])
    flatten = keras2_layer(
        "Flatten", "flatten", batch_input_shape=shape, data_format="channels_last"
    )
    dense = [
        keras2_dense("dense", 16, "relu"),
        keras2_layer("Dropout", "dropout", rate=0.3, noise_shape=None, seed=None),
        keras2_dense("dense_1", 10, "linear" if "logits" in kind else "softmax"),
    ]
    if "flat" in kind:
        dense[0]["config"]["batch_input_shape"] = shape
        parts = dense
    else:
        parts = [flatten, *dense]
    if "functional" not in kind:
        parts = parts if "older" in kind else [first, *parts]
        return {"class_name": "Sequential", "config": {"name": "net", "layers": parts}}
    del flatten["config"]["batch_input_shape"]
    parts.insert(0, first)
    names = [part["config"]["name"] for part in parts]
    for before, part in zip([None, *names], parts):
        part["name"] = part["config"]["name"]
        part["inbound_nodes"] = [[[before, 0, 0, {}]]] if before else []
    ends = {"input_layers": [["image", 0, 0]], "output_layers": [["dense_1", 0, 0]]}
    class_name = "Model" if "older" in kind else "Functional"
    config = {"name": "net", "layers": parts, **ends}
    return {"class_name": class_name, "config": config}


def write_keras2_file(path, kind):
    """A saved network in the layout of Keras 2; returns its [(kernel, bias), ...]."""
    random = np.random.default_rng(1)
    shapes = {"dense": (784, 16), "dense_1": (16, 10)}
    weights = {
        name: (random.normal(size=s, scale=0.1), random.normal(size=s[1]))
        for name, s in shapes.items()
    }
    metric = {"name": "accuracy", "dtype": "float32", "fn": "categorical_accuracy"}
    training = {
        "loss": "categorical_crossentropy",
        "metrics": [[{"class_name": "MeanMetricWrapper", "config": metric}]],
        "weighted_metrics": None,
        "loss_weights": None,
        "optimizer_config": {
            "class_name": "Adam",
            "config": {"name": "Adam", "learning_rate": 0.001, "decay": 0.0},
        },
    }
    description = keras2_description(kind)
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.4.0"
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps(description).encode()
        file.attrs["training_config"] = json.dumps(training).encode()
        file.create_group("optimizer_weights").attrs["weight_names"] = [b"Adam/iter:0"]
        file["optimizer_weights/Adam/iter:0"] = 3
        group = file.create_group("model_weights")
        group.attrs["keras_version"] = b"2.4.0"
        group.attrs["backend"] = b"tensorflow"
        names = [part["config"]["name"] for part in description["config"]["layers"]]
        group.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            arrays = dict(zip(("kernel:0", "bias:0"), weights.get(name, ())))
            arrays = {f"{name}/{k}": v.astype("float32") for k, v in arrays.items()}
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [key.encode() for key in arrays]
            for key, array in arrays.items():
                layer[key] = array
    return list(weights.values())


KERAS_2 = [
    "sequential",
    "sequential, logits",
    "sequential, flat images",
    "functional",
    "functional, older",  # its class was called Model
    "sequential, older",  # it had no InputLayer
    "sequential, older, flat images",
]


@pytest.mark.parametrize("kind", KERAS_2)
def test_files_of_keras_2_load_without_a_word(util, tmp_path, capfd, recwarn, kind):
    weights = write_keras2_file(tmp_path / "model.h5", kind)
    network = util.load_classifier(tmp_path / "model.h5")
    assert_predicts(network, numpy_predictions(weights))
    assert not network.compiled
    assert [w.message for w in recwarn if w.category is UserWarning] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["model.hdf5", "MODEL.H5", "model"])
def test_the_content_counts_not_the_suffix(util, tmp_path, name):
    network = sequential(28, 28)
    network.save(tmp_path / "model.h5")
    (tmp_path / "model.h5").rename(tmp_path / name)
    assert_predicts(util.load_classifier(tmp_path / name), network)


@pytest.mark.parametrize("layer, text", [
    (layers.Flatten(), "Flatten"),
    (layers.Dropout(0.3), "Dropout 0.3"),
    (layers.Dense(8), "Dense, linear"),
    (layers.Dense(8, "relu"), "Dense, relu"),
    (layers.Dense(8, "relu", kernel_regularizer=keras.regularizers.L2(0.001)),
     "Dense, relu, L2 0.001"),
])  # fmt: skip
def test_layer_is_described_in_a_few_words(util, layer, text):
    assert util.describe(layer) == text


@pytest.mark.parametrize("kind, strengths", [("L1", [0.02]), ("L1L2", [0.02, 0.3])])
def test_other_regularizers_are_described_with_their_strengths(util, kind, strengths):
    regularizer = getattr(keras.regularizers, kind)(*strengths)
    text = util.describe(layers.Dense(8, "tanh", kernel_regularizer=regularizer))
    assert all(str(word) in text for word in ("Dense, tanh", "L1", *strengths))


# ----------------------------------------------------- saved models that are refused


@pytest.fixture
def no_keras(monkeypatch):
    """The test fails if the file goes on to Keras."""

    def reached(*arguments, **options):
        pytest.fail("the file went on to Keras")

    for place in (keras.models, keras.saving):
        monkeypatch.setattr(place, "load_model", reached)
    for kind in (keras.Sequential, keras.Model):
        monkeypatch.setattr(kind, "from_config", reached)


@pytest.fixture(scope="session")
def saved_file(tmp_path_factory):
    """A valid file whose description has everything that tests may want to forge."""
    l2 = keras.regularizers.L2(0.001)
    parts = [layers.Flatten(), layers.Dense(8, "relu", kernel_regularizer=l2)]
    parts += [layers.Dropout(0.3), layers.Dense(10, "softmax")]
    network = keras.Sequential([keras.Input((28, 28)), *parts])
    network.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    path = tmp_path_factory.mktemp("saved") / "model.h5"
    network.save(path)
    network.save_weights(path.with_name("model.weights.h5"))
    with h5py.File(path, "a") as file:
        file["padding"] = np.zeros(2**22, "uint8")  # to allow for a million weights
    return path


@pytest.fixture
def forge(saved_file, tmp_path):
    """forge(edit) is the valid file after edit(description, training) changed it."""

    def write(edit):
        path = tmp_path / "forged.h5"
        shutil.copy(saved_file, path)
        with h5py.File(path, "a") as file:
            keys = "model_config", "training_config"
            contents = [json.loads(file.attrs[key]) for key in keys]
            edit(*contents)
            for key, content in zip(keys, contents):
                file.attrs[key] = json.dumps(content)
        return path

    return write


def setting(number, **changes):
    """An edit, for `forge`, of the config of layer `number` (0 is the input)."""

    def edit(description, training):
        description["config"]["layers"][number]["config"].update(changes)

    return edit


def compiled_with(**changes):
    return lambda description, training: training.update(changes)


def outer(number, **changes):
    """An edit of what is beside the config of layer `number`."""

    def edit(description, training):
        description["config"]["layers"][number].update(changes)

    return edit


def both(*edits):
    return lambda *contents: [edit(*contents) for edit in edits]


def first_layer(**changes):
    """An edit that leaves the input layer away and gives its duty to the next."""

    def edit(description, training):
        del description["config"]["layers"][0]
        setting(0, **changes)(description, training)

    return edit


def custom(name="Evil", **more):
    return {"class_name": name, "config": {}, **more}


def function(name, module="builtins", registered_name=None):
    names = {"config": name, "registered_name": registered_name or name}
    return {"class_name": "function", "module": module, **names}


def test_forging_itself_breaks_nothing(util, forge, saved_file):
    path = forge(setting(2, activation=function("relu")))
    assert_predicts(util.load_classifier(path), util.load_classifier(saved_file))


def text_file(path, saved):
    path.write_text("model")


def weights_only_file(path, saved):
    shutil.copy(saved.with_name("model.weights.h5"), path)


def weights_only_file_of_keras_2(path, saved):
    shutil.copy(saved, path)
    with h5py.File(path, "a") as file:
        del file.attrs["model_config"], file.attrs["training_config"]


def hdf5_file_without_a_model(path, saved):
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(9)


def truncated_file(path, saved):
    path.write_bytes(saved.read_bytes()[:-1000])


def described_by(content):
    def write(path, saved):
        shutil.copy(saved, path)
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = content

    return write


@pytest.mark.parametrize("write", [
    pytest.param(lambda path, saved: path.touch(), id="empty"),
    text_file, weights_only_file, weights_only_file_of_keras_2,
    hdf5_file_without_a_model, truncated_file,
    pytest.param(described_by("{"), id="broken JSON"),
    pytest.param(described_by(b"\xff\xfe"), id="no text"),
    pytest.param(described_by(np.arange(9)), id="an array"),
    pytest.param(described_by(7), id="a number"),
    pytest.param(described_by(h5py.Empty("f")), id="an empty attribute"),
    pytest.param(described_by("7"), id="a number in JSON"),
    pytest.param(described_by("[]"), id="an empty list"),
    pytest.param(described_by("9" * 5000), id="a very long number"),
    pytest.param(described_by("[" * 100_000 + "]" * 100_000), id="100,000 levels"),
    pytest.param(described_by("[" * 40_000 + "]" * 40_000), id="40,000 levels"),
    pytest.param(described_by('{"config":' * 9_000 + "0" + "}" * 9_000), id="9,000 levels"),
])  # fmt: skip
def test_file_without_a_readable_model_is_refused(
    util, saved_file, tmp_path, write, no_keras
):
    path = tmp_path / "model.h5"
    write(path, saved_file)
    started = time.monotonic()
    with refused(util, path):
        util.load_classifier(path)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", ["missing", "a folder"])
def test_path_without_a_file_is_called_so(util, tmp_path, kind):
    path = tmp_path / "model.h5"
    if kind == "a folder":
        path.mkdir()
    with refused(util, path, "no such file"):
        util.load_classifier(path)


NAMED = {  # edit, and what the message must name
    "layer": (outer(1, class_name="Evil"), "Evil"),
    "layer of Keras": (outer(1, class_name="TFSMLayer"), "TFSMLayer"),
    "model": (lambda description, _: description.update(class_name="Evil"), "Evil"),
    "activation": (setting(2, activation="evil"), "evil"),
    "activation function": (setting(2, activation=function("evil")), "evil"),
    "activation class": (setting(2, activation=custom()), "Evil"),
    "activation registered": (
        setting(2, activation=function("relu", registered_name="evil>relu")),
        "evil>relu",
    ),
    "activation in a list": (setting(2, activation=["evil"]), "evil"),
    "kernel initializer": (setting(2, kernel_initializer=custom()), "Evil"),
    "bias initializer": (setting(2, bias_initializer="evil"), "evil"),
    "kernel regularizer": (setting(2, kernel_regularizer=custom()), "Evil"),
    "bias regularizer": (setting(2, bias_regularizer="evil"), "evil"),
    "activity regularizer": (setting(2, activity_regularizer=custom()), "Evil"),
    "kernel constraint": (setting(2, kernel_constraint=custom()), "Evil"),
    "bias constraint": (setting(2, bias_constraint="evil"), "evil"),
    "dtype policy": (setting(2, dtype=custom()), "Evil"),
    "quantization": (setting(2, quantization_config=custom()), "Evil"),
    "loss": (compiled_with(loss="evil"), "evil"),
    "loss class": (compiled_with(loss=custom()), "Evil"),
    "loss of an output": (compiled_with(loss={"output": "evil"}), "evil"),
    "metric": (compiled_with(metrics=["accuracy", "evil"]), "evil"),
    "metric class": (compiled_with(metrics=[[custom()]]), "Evil"),
    "metric of an output": (compiled_with(metrics={"output": ["evil"]}), "evil"),
    "metric's function": (
        compiled_with(metrics=[custom("MeanMetricWrapper", config={"fn": "evil"})]),
        "evil",
    ),
    "weighted metric": (compiled_with(weighted_metrics=["evil"]), "evil"),
    "registered name": (outer(2, registered_name="Evil>Dense"), "Evil>Dense"),
    "module": (outer(2, module="evil.module"), "evil.module"),
    "module like Keras's": (outer(2, module="keras_evil"), "keras_evil"),
    "no module": (outer(2, module=None, registered_name="Evil"), ""),
    "nested": (setting(2, name=["x", {"y": custom("Lambda")}]), "Lambda"),
    "lines and colours": (setting(2, activation="evil\n\x1b[31m"), "evil"),
}


@pytest.mark.parametrize("place", NAMED)
def test_custom_name_is_refused_before_keras(util, forge, no_keras, place):
    edit, name = NAMED[place]
    path = forge(edit)
    with refused(util, path, name):
        util.load_classifier(path)


def test_code_in_a_lambda_layer_never_runs(util, tmp_path):
    marker = tmp_path / "marker"
    code = f"lambda x: [x, __import__('pathlib').Path({str(marker)!r}).touch()][0]"
    parts = [layers.Flatten(), layers.Lambda(eval(code)), layers.Dense(10, "softmax")]
    path = tmp_path / "model.h5"
    keras.Sequential([keras.Input((28, 28)), *parts]).save(path)
    keras.models.load_model(path, safe_mode=False)
    marker.unlink()  # so the trap works; now leave it alone
    with refused(util, path, "Lambda"):
        util.load_classifier(path)
    assert not marker.exists()


def test_zip_archive_hidden_behind_a_model_is_not_loaded(util, tmp_path, saved_file):
    """For the suffix .keras, Keras reads the archive and not what was checked."""
    path = tmp_path / "model.keras"
    other = keras.Sequential([keras.Input((28, 28)), layers.Rescaling(2.0)])
    other.add(layers.Flatten())
    other.add(layers.Dense(10, "softmax"))
    other.save(path)
    path.write_bytes(saved_file.read_bytes() + path.read_bytes())
    try:
        network = util.load_classifier(path)
    except util.InputError:
        return
    assert_predicts(network, util.load_classifier(saved_file))


@pytest.mark.parametrize(
    "network, words",
    [
        (
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(2, 3),
                layers.Flatten(),
                layers.Dense(10),
            ],
            ["Conv2D"],
        ),
        ([keras.Input((32, 32)), layers.Flatten(), layers.Dense(10)], ["(32, 32)"]),
        (
            [keras.Input((28, 28, 3)), layers.Flatten(), layers.Dense(10)],
            ["(28, 28, 3)"],
        ),
        ([keras.Input((10,)), layers.Dense(10)], ["(10,)"]),
    ],
)
def test_other_kinds_of_network_are_refused(util, tmp_path, network, words):
    path = tmp_path / "model.h5"
    keras.Sequential(network).save(path)
    with refused(util, path, *words):
        util.load_classifier(path)


def setting_units_aside(description, training):
    """A product of neighbours, in the order of the file, would be small."""
    setting(2, units=10**6)(description, training)
    parts = description["config"]["layers"]
    parts[2] = {"before": {"units": 1}, **parts[2], "after": {"units": 1}}


HUGE = {
    "units": setting(2, units=10**9),
    "units beyond 64 bits": setting(2, units=10**30),
    "units in floating point": setting(2, units=1e9),
    "units that the next seem to pay": both(
        setting(2, units=10**9), setting(4, units=-784)
    ),
    "units that others hide": setting_units_aside,
    "units beside NaN": both(setting(2, units=10**9), setting(4, units=float("nan"))),
    "input layer": setting(0, batch_shape=[None, 10**5, 10**5]),
    "input shape of the first layer": first_layer(input_shape=[10**5, 10**5]),
    "input size of the first layer": first_layer(input_dim=10**9),
    "build shape": both(
        first_layer(),
        lambda description, _: description["config"].update(
            build_input_shape=[None, 10**5, 10**5]
        ),
    ),
    "description": lambda description, _: description.update(more=[0] * 10**6),
    "compile arguments": compiled_with(more=[0] * 10**6),
}


@pytest.mark.parametrize("place", HUGE)
def test_huge_network_is_refused_at_once(util, forge, no_keras, place):
    path = forge(HUGE[place])
    started = time.monotonic()
    with refused(util, path):
        util.load_classifier(path)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("more", [{"lora_rank": 10**9}, {"kernel_shape": [10**9] * 2}])
def test_what_this_experiment_does_not_use_is_ignored(util, forge, more):
    path = forge(setting(2, **more))
    started = time.monotonic()
    assert util.load_classifier(path).output_shape == (None, 10)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("units", ["many", None, [8], {}, 0, -8, 1.5, True])
def test_units_that_are_no_count_are_refused(util, forge, units):
    path = forge(setting(2, units=units))
    with refused(util, path):
        util.load_classifier(path)


@pytest.mark.parametrize("units", [5, 11])
def test_other_number_of_classes_is_refused(util, tmp_path, units):
    path = tmp_path / "model.h5"
    network = [keras.Input((28, 28)), layers.Flatten(), layers.Dense(units)]
    keras.Sequential(network).save(path)
    with refused(util, path, f"({units},)"):
        util.load_classifier(path)


def without_weights(file):
    del file["model_weights"]


def without_a_layer(file):
    names = file["model_weights"].attrs["layer_names"]
    file["model_weights"].attrs["layer_names"] = [str(name) for name in names[:-1]]


def kernel(file):
    """The first kernel: its group and its name there."""
    layer = next(
        g for g in file["model_weights"].values() if g.attrs["weight_names"].size
    )
    return layer, str(layer.attrs["weight_names"][0])


def of_other_shape(file):
    layer, name = kernel(file)
    array = layer[name][:]
    del layer[name]
    layer[name] = array.T


def of_text(file):
    layer, name = kernel(file)
    shape = layer[name].shape
    del layer[name]
    layer[name] = np.full(shape, b"text")


def without_a_kernel(file):
    layer, name = kernel(file)
    del layer[name]


def in_another_file(file):
    layer, name = kernel(file)
    del layer[name]
    layer[name] = h5py.ExternalLink("/etc/passwd", "data")


@pytest.mark.parametrize(
    "edit",
    [
        without_weights,
        without_a_layer,
        without_a_kernel,
        of_other_shape,
        of_text,
        in_another_file,
    ],
)
def test_weights_that_do_not_fit_are_refused(util, saved_file, tmp_path, edit):
    path = tmp_path / "model.h5"
    shutil.copy(saved_file, path)
    with h5py.File(path, "a") as file:
        edit(file)
    with refused(util, path):
        util.load_classifier(path)


@pytest.mark.parametrize("edit", [
    pytest.param(setting(0, batch_shape=[1, 28, 28]), id="batches of one"),
    pytest.param(setting(0, dtype="string"), id="images of text"),
    pytest.param(setting(0, sparse=True), id="sparse images"),
    pytest.param(setting(0, dtype="uint8"), id="images of bytes"),
    pytest.param(setting(3, noise_shape=[7, 7, 7]), id="odd dropout"),
    pytest.param(setting(2, dtype="float64"), id="double precision"),
    pytest.param(setting(4, activation=None), id="logits"),
])  # fmt: skip
def test_what_is_taken_can_be_used(util, forge, edit):
    """An odd file is either refused in one line or good for any number of images."""
    path = forge(edit)
    try:
        network = util.load_classifier(path)
    except util.InputError as error:
        assert str(path) in str(error)
        return
    rows = np.array(network(IMAGES, training=False))
    assert rows.shape == (len(IMAGES), 10)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-4)


# --------------------------------------------------------------------- the pictures

NAN = float("nan")


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in a list."""
    saved, save = [], matplotlib.figure.Figure.savefig

    def record(figure, *arguments, **options):
        saved.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", record)
    return saved


def assert_is_picture(path):
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200
    assert np.ptp(pixels[..., :3]) > 0.5  # something is drawn


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def study(accuracies):
    """`curves` for plot_hyperparameters: for each value, the accuracies of the seeds."""
    values = {
        "dropout_rate": [0.1, 0.2, 0.3, 0.4, 0.5],
        "learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01],
        "batch_size": [32, 64, 128, 256, 512],
        "epochs": [10, 20, 30, 40, 50],
    }
    return {
        (name, flag): dict(zip(row, np.array(accuracies) - 0.01 * flag))
        for flag in (False, True)
        for name, row in values.items()
    }


# What matplotlib or NumPy has to say would show on the user's terminal.
QUIETLY = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")


@QUIETLY
@pytest.mark.parametrize(
    "accuracies, diverged",
    [
        ([[0.8], [0.81], [0.82], [0.81], [0.8]], 0),
        ([[0.8, 0.9], [0.81, 0.8], [0.82, 0.8], [0.81, 0.8], [NAN, 0.8]], 1),
        ([[NAN]] * 5, 5),
    ],
)
def test_hyperparameters_are_drawn(util, main, tmp_path, figures, accuracies, diverged):
    path = tmp_path / "picture.png"
    final = main.Trial("tyler", False, 0.3, 0.001, 128, 50, 0)
    util.plot_hyperparameters(study(accuracies), final, path)
    assert_is_picture(path)
    [figure] = figures
    labels = [ax.get_xlabel() for ax in figure.axes]
    for name in ("dropout rate", "learning rate", "batch size", "epochs"):
        assert any(name in label for label in labels)
    for label in ("without L2", "with L2"):  # in each of the four panels
        assert texts(figure).count(f"diverged {label}") == 4 * diverged


def history(length, last=0.5):
    values = [*np.linspace(2, 1, length - 1), last]
    return {m: values for m in ("loss", "accuracy", "val_loss", "val_accuracy")}


@QUIETLY
@pytest.mark.parametrize(
    "runs",
    [
        [[history(5)], [history(5)]],
        [[history(5), history(3, NAN)], [history(1, NAN)]],
        [[history(2, float("inf"))], [history(2, NAN)]],
    ],
    ids=["plain", "seeds of different length", "diverged"],
)
def test_accuracy_over_the_epochs_is_drawn(util, tmp_path, figures, runs):
    path = tmp_path / "picture.png"
    util.plot_accuracy("tyler", runs, path)
    assert_is_picture(path)
    [figure] = figures
    assert {"Tyler in training", "epoch", "accuracy"} <= set(texts(figure))


def guesses(count, right):
    """(labels, probabilities) of `count` images, the first `right` of them right."""
    labels = np.arange(count) % 10
    chosen = np.where(np.arange(count) < right, labels, (labels + 1) % 10)
    return labels, np.eye(10)[chosen] * 0.7 + 0.03


@QUIETLY
@pytest.mark.parametrize("count, right", [(40, 30), (10, 10), (10, 0), (3, 2)])
def test_confusion_matrix_is_drawn(util, tmp_path, figures, count, right):
    labels, probabilities = guesses(count, right)
    path = util.plot_confusion_matrix("model_x_0", labels, probabilities, tmp_path)
    assert path == tmp_path / "confusion_matrix_x_0.png"
    assert_is_picture(path)
    [figure] = figures
    assert f"{right / count:.1%}" in figure.get_suptitle()
    assert set(util.CLASS_NAMES) <= set(texts(figure))


@QUIETLY
def test_rows_of_the_confusion_matrix_are_the_true_classes(util, tmp_path, figures):
    labels, predicted = np.array([0, 0, 0, 0, 1]), [0, 0, 0, 1, 1]
    util.plot_confusion_matrix("x", labels, np.eye(10)[predicted], tmp_path)
    matrix = figures[0].axes[0].images[0].get_array()
    assert matrix[:3, :3].tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]


@QUIETLY
def test_confusion_matrix_of_a_diverged_model_is_drawn(util, tmp_path):
    probabilities = np.full((20, 10), NAN)
    labels = np.arange(20) % 10
    assert_is_picture(util.plot_confusion_matrix("x", labels, probabilities, tmp_path))


@QUIETLY
@pytest.mark.parametrize(
    "count, right, pictures", [(40, 30, 12), (40, 0, 6), (10, 10, 6), (5, 3, 5)]
)
def test_predictions_are_drawn(util, tmp_path, figures, count, right, pictures):
    images = synthetic_images(count)[0]
    labels, probabilities = guesses(count, right)
    path = tmp_path / "picture.png"
    util.plot_predictions(images, labels, probabilities, path)
    assert_is_picture(path)
    assert sum(len(ax.images) for ax in figures[0].axes) == pictures


@QUIETLY
def test_surest_mistakes_come_first_and_nan_last(util, tmp_path, figures):
    labels, probabilities = guesses(20, 0)
    for i, sureness in ((7, 0.99), (3, 0.9), (5, NAN)):
        probabilities[i] = np.eye(10)[0] * sureness
    util.plot_predictions(
        synthetic_images(20)[0], labels, probabilities, tmp_path / "picture.png"
    )
    titles = [ax.get_title() for ax in figures[0].axes[6:]]
    assert "99.0%" in titles[0] and "90.0%" in titles[1]
    assert not any("nan" in title for title in titles)


@QUIETLY
@pytest.mark.parametrize("name", ["tyler", "jackson", "elaborate", "functional"])
def test_architecture_is_drawn(util, model, tmp_path, figures, name):
    build = {"elaborate": elaborate, "functional": functional}.get(name)
    network = (build or getattr(model, f"build_{name}"))()
    path = tmp_path / "picture.png"
    util.plot_architecture(network, path)
    assert_is_picture(path)
    assert f"{network.count_params():,} weights" in figures[0].get_suptitle()
