"""The program as its users meet it, and the training behind it."""

import contextlib
import csv
import functools
import gc
import hashlib
import http.server
import io
import json
import os
import re
import resource
import shutil
import signal
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
from conftest import PROJECT, SCRIPTS, copy_scripts
from PIL import Image

README = (PROJECT / "README.md").read_text(encoding="utf-8")
MODELS_DIR = PROJECT / "models"
SCRIPT = "main-FMNIST.py"
NETWORKS = ("Tyler", "Tyler + L2", "Jackson", "Jackson + L2")
SCORES = ("loss", "accuracy", "precision", "recall", "f1")
STUDY = {"dropout_rate": (0.1,), "learning_rate": (0.003,), "batch_size": (96,)}
TRIALS = ".trials/[0-9a-f]*.h5"


@pytest.fixture(scope="session")
def small(tmp_path_factory, make_idx_dir):
    """The arguments of a short run: 600 images train, 150 validate, 100 test."""
    data_dir = make_idx_dir(tmp_path_factory.mktemp("data"), train=750, test=100)
    return "--epochs", 2, "--batch-size", 64, "--seed", 7, "--data-dir", data_dir


data = pytest.fixture(lambda util, small: util.load_data(small[-1]), scope="session")


@contextlib.contextmanager
def started(*arguments, script=PROJECT / SCRIPT, limit=None, **options):
    """The program as a process with a session of its own, which ends with the block."""
    command = [sys.executable, str(script), *map(str, arguments)]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    # What runs in a shell's background has been told to ignore Ctrl-C.
    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if limit:
            limit()

    options |= {"start_new_session": True, "preexec_fn": prepare}
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


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


@pytest.fixture
def without_workers(main, util, monkeypatch):
    """To start workers, and to try networks, takes longer than small trials do."""
    monkeypatch.setattr(util, "local_workers", lambda _: futures.ThreadPoolExecutor(1))
    monkeypatch.setattr(main, "check_settings", lambda *_: None)


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


def assert_same(ours, theirs, pattern="models/model_*.h5"):
    """Ours are theirs, to the last byte: weights, histories and descriptions."""
    paths = [*ours.glob(pattern)]
    assert paths != []
    for path in paths:
        assert path.read_bytes() == (theirs / path.relative_to(ours)).read_bytes()


PUBLISHED = {
    "dropout_rate": 0.3,
    "learning_rate": 0.001,
    "batch_size": 128,
    "epochs": 50,
}


def test_the_study_moves_one_published_value_at_a_time(main, monkeypatch):
    options = main.parse_options([])
    finals = main.final_settings(options)
    assert [setting.label for setting in finals[:4]] == [*NETWORKS]
    for setting in finals:
        assert PUBLISHED.items() <= setting._asdict().items()
    assert (options.seed, options.repeats, main.STUDIED) == (0, 1, ("tyler",))
    values = {
        "dropout_rate": [0.1, 0.2, 0.3, 0.4, 0.5],
        "learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01],
        "batch_size": [32, 64, 128, 256, 512],
        "epochs": [10, 20, 30, 40, 50],
    }
    moved = main.study_settings(finals[0])
    points = [(name, x) for name in values for x in values[name]]
    assert [it for it in moved if it[0] in values] == points
    for name, value in points:
        value = 50 if name == "epochs" else value  # fewer are on the way to 50
        assert moved[name, value] == finals[0]._replace(**{name: value})
    assert ("batch_size", 96) in main.study_settings(finals[0]._replace(batch_size=96))
    named = "--dropout-rate 0.2 --learning-rate 0.002 --batch-size 96 --epochs 7"
    named = main.final_settings(main.parse_options(named.split()))
    for setting in named:
        assert setting._asdict().items() >= {*zip(PUBLISHED, (0.2, 0.002, 96, 7))}
    monkeypatch.setattr(main, "STUDY", {"epochs": (80, 20)})
    moved = main.study_settings(finals[0])
    assert [(it, x.epochs) for it, x in moved.items()] == [
        (("epochs", 20), 50), (("epochs", 50), 50), (("epochs", 80), 80),
    ]  # fmt: skip
    histories = {}
    for setting in moved.values():
        histories[setting] = {
            "val_accuracy": np.arange(1, setting.epochs + 1)[None] / 100
        }
    study = main.study_rows(finals[:1], histories)
    assert [row["val_accuracy"] for row in study] == [0.2, 0.5, 0.8]
    differences = [row["difference"] for row in study]
    assert differences == pytest.approx([-0.3, 0, 0.3])


@pytest.mark.usefixtures("whole_begun")  # it runs beside this
@pytest.mark.parametrize(
    "network, with_l2, epochs",  # loss and accuracy of seed 0 on the real data
    [
        ("tyler", False, ((0.6276, 0.7760), (0.4123, 0.8533))),
        ("tyler", True, ((1.0892, 0.7680), (0.7431, 0.8463))),
        ("jackson", False, ((0.7705, 0.7273),)),
        ("jackson", True, ((1.4742, 0.7257),)),
    ],
)
def test_training_starts_as_published(
    main, util, make_trial, real_data_dir, tmp_path, network, with_l2, epochs
):
    """Another processor or seed differs by 1 %. Without dropout it is 5 % and more."""
    train, validation, _ = util.load_data(real_data_dir)
    values = {"use_regularizer": with_l2, "batch_size": 128, "epochs": len(epochs)}
    path = tmp_path / "model.h5"
    trial = make_trial(network, **values)
    path.write_bytes(main.train_trial(*trial, train, validation))
    history = {metric: runs[0] for metric, runs in util.read_histories([path]).items()}
    found = np.transpose([history["loss"], history["accuracy"]])
    np.testing.assert_allclose(found, epochs, rtol=0.01)
    assert 0.82 < history["val_accuracy"][-1] < 0.88


PLAIN = 'loss="categorical_crossentropy",\n        metrics=["accuracy"],'
SMOOTH = "loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),"
TOP3 = 'metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(3, "top3")],'


@pytest.mark.parametrize(
    "network, with_l2, words, adam, own_step",
    [
        ("tyler", False, PLAIN, {}, False),
        ("jackson", True, f'loss="categorical_crossentropy", {TOP3}', {}, False),
        ("tyler", True, f"{SMOOTH} metrics=['accuracy'],", {"clipnorm": 0.1}, False),
        ("tyler", False, PLAIN, {"weight_decay": 10}, True),
    ],
)
def test_a_trial_does_the_arithmetic_of_fit(
    model, util, make_trial, edit_main, data, tmp_path, monkeypatch,
    network, with_l2, words, adam, own_step,
):  # fmt: skip
    """Without dropout, all chance is in the first weights and in the order of the images,
    which is new in each epoch. The last batch of 600 images is smaller. A metric, a loss
    and a training step that somebody writes have their usual place."""
    import keras

    class OwnStep(keras.Sequential):
        def train_step(self, batch):
            images, labels = batch
            return super().train_step((images, labels[:, ::-1]))

    if own_step:
        build = model.NETWORKS[network]

        def with_own_step(**values):
            return OwnStep(build(**values).layers)

        monkeypatch.setitem(model.NETWORKS, network, with_own_step)
    rate = "util.adam(setting.learning_rate)"
    changes = {PLAIN: words, rate: f"{rate[:-1]}, **{adam})"}
    main = edit_main(changes)
    (images, labels), (x_val, y_val), _ = data
    images, x_val = images / np.float32(255), x_val / np.float32(255)
    values = {"learning_rate": 0.0005, "batch_size": 250, "epochs": 2}
    values |= {"dropout_rate": 0.0, "use_regularizer": with_l2}
    setting, seed = make_trial(network, seed=3, **values)
    path = tmp_path / "model.h5"
    path.write_bytes(main.train_trial(setting, seed, *data[:2]))
    keras.utils.set_random_seed(3)
    theirs, random = main.build_network(setting), np.random.default_rng(3)
    compiled = eval(f"dict({words})", {"keras": keras})
    theirs.compile(keras.optimizers.Adam(0.0005, **adam), **compiled)
    options = {"validation_data": (x_val, y_val), "shuffle": False, "verbose": 0}
    histories = util.read_histories([path])
    for epoch in range(2):
        order = random.permutation(600)
        fit = theirs.fit(images[order], labels[order], 250, **options)
        assert {*fit.history} == {*histories}
        for metric, [ours] in histories.items():
            # An image may fall on the other side: 1 of 150.
            [expected] = fit.history[metric]
            assert ours[epoch] == pytest.approx(expected, rel=1e-3, abs=0.007)
    ours = keras.models.load_model(path)
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        # Adam divides by the gradient's size: where that is nearly 0, rounding shows.
        assert np.abs(one.value - other.value).mean() < 1e-5
    # As README says, somebody loads the file and trains on.
    saved = json.loads(description(path)["training_config"])
    trained = theirs.get_compile_config()
    assert type(ours.optimizer) is keras.optimizers.Adam
    for name in ("loss", "metrics"):
        assert saved[name] == trained[name]
    for name, value in adam.items():
        assert getattr(ours.optimizer, name) == value


def test_each_step_draws_its_own_dropout_and_validation_has_none(
    main, util, make_trial, data
):
    images, labels = data[0]
    model = main.build_network(make_trial("jackson")[0])
    model.compile(util.adam(1e-12), "categorical_crossentropy")  # no weight moves
    for step, different in ((model.train_step, 3), (model.test_step, 1)):
        run_epoch = main.epoch_function(model, step, batch_size=600)
        epochs = [run_epoch(images, labels, np.arange(600)) for _ in range(3)]
        assert len({float(epoch["loss"]) for epoch in epochs}) == different


def test_a_trial_leaves_nothing_in_its_worker(main, make_trial, data):
    """A model and its graphs refer to each other and would pile up."""
    import keras

    counts = []
    for _ in range(3):
        main.train_trial(*make_trial(), *data[:2])
        counts.append(sum(type(x) is keras.Sequential for x in gc.get_objects()))
    assert counts == counts[:1] * 3


def test_a_diverged_model_has_no_scores(main, util, make_trial, data, tmp_path, capsys):
    """Its loss stays finite: in the graph's ReLU, a NaN becomes 0."""
    trial, path = make_trial(learning_rate=1e12), tmp_path / "model.h5"
    path.write_bytes(main.train_trial(*trial, *data[:2]))
    assert np.isnan([*util.read_histories([path]).values()]).all()
    tested = main.test_model(util.load_classifier(path), data[2])
    assert np.isnan([*tested[0].values()]).all()
    util.report_results({trial[0]: [tested]})
    assert capsys.readouterr().out.count("diverged") == len(SCORES)
    one, two = [(dict.fromkeys(SCORES, score), None) for score in (0.5, 0.6)]
    with_l2, _ = make_trial(use_regularizer=True)
    util.report_results({trial[0]: [one, tested, two], with_l2: [one, one, one]})
    said = capsys.readouterr().out
    assert said.count("0.5500") == said.count("±0.0707") == len(SCORES)
    assert "Tyler - Tyler + L2: +0.0500, standard error 0.0500" in said
    assert "Tyler: 1 of 3 seeds diverged" in said


ODD = {
    "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error",
    "TF_ENABLE_ONEDNN_OPTS": "0", "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    "ONEDNN_MAX_CPU_ISA": "SSE41", "MPLBACKEND": "nonsense", "NO_COLOR": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
}  # fmt: skip


MATPLOTLIBRC = "text.usetex: True\nfont.family: none such\nsavefig.format: pdf\n"


@pytest.fixture(scope="session")
def whole_begun(tmp_path_factory, small):
    """The experiment with a small study, two trials at a time, beside a copy of the
    scripts and files of the user's, from another folder, in an odd environment. It runs
    while other tests do."""
    folder, home, elsewhere = map(tmp_path_factory.mktemp, ("project", "home", "e"))
    text = (PROJECT / SCRIPT).read_text()
    [study] = re.findall(r"STUDY = {.*?\n}", text, re.DOTALL)
    copy_scripts(folder, {SCRIPT: {study: f"STUDY = {STUDY}"}})
    (folder / "models").mkdir()
    (folder / "models/mine.h5").write_text("mine")
    keras_settings = {"floatx": "float64", "image_data_format": "channels_first"}
    (home / "keras.json").write_text(json.dumps(keras_settings))
    (elsewhere / "matplotlibrc").write_text(MATPLOTLIBRC)
    for name in ("socket.py", "pickle.py", "random.py"):
        (elsewhere / name).write_text("raise SystemExit('the user has this, too')")
    folders = {"TMPDIR": str(elsewhere), "KERAS_HOME": str(home)}
    options = {"cwd": elsewhere, "env": {**os.environ, **ODD, **folders}}
    with started(*small, "--jobs", 2, script=folder / SCRIPT, **options) as process:
        yield SimpleNamespace(folder=folder, process=process, elsewhere=elsewhere)


@pytest.fixture(scope="session")
def whole(whole_begun):
    whole_begun.output = finish(whole_begun.process)
    return whole_begun


@pytest.mark.usefixtures("without_workers")
def test_a_whole_run_and_what_is_trained_after_it(
    whole, call, main, model, util, small, tmp_path, monkeypatch
):
    """The same command trains nothing and writes the same bytes. Another value or seed
    trains only itself."""
    count = 2 * len(model.NETWORKS) + 2 * len(STUDY)
    lines = whole.output.splitlines()
    assert lines[0] == f"Fashion-MNIST: the results go into {whole.folder}"
    assert lines[2] == f"{count} trials, 0 of them trained before"
    # The final models come first. Two are trained at a time: either may be done first.
    assert re.match(r"Tyler( \+ L2)? +final +7 ", lines[6])
    done = re.findall(r"^\S+(?: \+ L2)? .* (\d+)$", "\n".join(lines[6:]), re.MULTILINE)
    assert [*map(int, done[:count])] == [*range(1, count + 1)]
    assert max(map(len, lines[1:-1])) <= 60 and str(whole.folder) in lines[-1]
    losses = column(whole.folder / "models/history.csv", "loss", epoch=2)
    assert len({*losses}) == len(losses) == count  # each value of a trial matters
    made = {"models", "plots", ".trials"}
    assert {*os.listdir(whole.folder)} == {*SCRIPTS, *made}
    pictures = {path.stem for path in (PROJECT / "plots").iterdir()}
    assert {path.stem for path in (whole.folder / "plots").iterdir()} >= pictures
    placed = {"matplotlibrc", "socket.py", "pickle.py", "random.py"}
    assert {*os.listdir(whole.elsewhere)} == placed
    assert (whole.folder / "models/mine.h5").read_text() == "mine"
    monkeypatch.setattr(main, "STUDY", STUDY)
    shutil.copytree(whole.folder / ".trials", tmp_path / ".trials")
    train = mock.Mock(side_effect=util.InputError("stop"))
    monkeypatch.setattr(util, "train_in_workers", train)
    tried = mock.Mock()
    monkeypatch.setattr(main, "check_settings", tried)
    small = (*small, "--output-dir", tmp_path)
    call(*small)
    assert not tried.called  # as nothing is trained
    assert_same(tmp_path, whole.folder, "[mp]*/*")  # the pictures, too
    theirs = {*os.listdir(whole.folder / "models")}
    assert theirs - {*os.listdir(tmp_path / "models")} == {"mine.h5"}

    def to_train(*arguments):
        """The (setting, seed) that a run with these arguments would train."""
        assert "stop" in call(*small, *arguments, status=2)
        return [*train.call_args.args[0]]

    assert {seed for _, seed in to_train("--repeats", 2)} == {8}
    assert len(to_train("--epochs", 3)) == count
    train.side_effect = [futures.BrokenExecutor] * 5 + [util.InputError("stop")]
    assert "workers died five times" in call(*small, "--seed", 1, status=2)
    moved = to_train("--no-sweep", "--dropout-rate", 0.1)  # the study has Tyler's
    others = [setting for setting in main.final_settings(main.parse_options([]))[2:]]
    assert [setting.label for setting, _ in moved] == [it.label for it in others]
    broken = next((tmp_path / ".trials").glob("*.h5"))
    broken.unlink()
    broken.mkdir()  # it cannot be read: that is no reason to train it again
    assert str(broken) in call(*small, status=2)
    monkeypatch.setattr(model, "NETWORKS", {"jackson": model.NETWORKS["jackson"]})
    monkeypatch.setattr(main, "STUDIED", ())
    train.side_effect = None
    monkeypatch.setattr(util, "draw", lambda *_: None)
    broken.rmdir()
    shutil.copytree(whole.folder / ".trials", tmp_path / ".trials", dirs_exist_ok=True)
    [left] = re.findall("Left from an earlier run: (.*)", call(*small))
    kinds = (
        "architecture_{}.png",
        "confusion_matrix_{}_0.png",
        "confusion_matrix_{}_1.png",
    )
    kinds += ("hyperparameters_{}.png", "model_{}_0.h5", "model_{}_1.h5")
    expected = {kind.format("tyler") for kind in kinds} | {"study.csv"}
    assert {*left.split(", ")} >= expected and "jackson" not in left


NOTEBOOK = """
import sys, types
class Stream:  # a kernel's: it has no `reconfigure`
    isatty = staticmethod(lambda: False)
    def __init__(self, stream):
        self.write, self.flush = stream.write, stream.flush
def run():  # as %run does it, from the second time on
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    module.__file__ = sys.argv[0] = "main-FMNIST.py"
    del module.__spec__
    print("RUN")
    exec(compile(open("main-FMNIST.py").read(), "main-FMNIST.py", "exec"), vars(module))
def edit(script, old, new):
    text = open(script).read().replace(old, new)
    open(script, "w").write(text)
sys.stdout = Stream(sys.stdout)
import logging, random, socket, keras
keras.config.set_floatx("float64")
socket.setdefaulttimeout(77)
def state():
    return (
        dict(os.environ), keras.config.floatx(), keras.config.dtype_policy().name,
        random.random(), numpy.random.random(), socket.getdefaulttimeout(),
        logging.root.manager.disable, warnings.filters[:], os.getcwd(),
    )
import os, warnings, numpy
random.seed(1); numpy.random.seed(1)
before = state()
random.seed(1); numpy.random.seed(1)
run()
assert state() == before, (state(), before)
edit("main-FMNIST.py", "Testing the", "Measuring the")
edit("util-FMNIST.py", "Test results", "Results")
edit("model-FMNIST.py", "# as published", "# edited")
run()
edit("model-FMNIST.py", 'Dense(128, "relu"', 'Dense(64, "relu"')
edit("util-FMNIST.py", "if not missing:", "if True:")  # without training them
run()
"""


@pytest.fixture(scope="session")
def notebook_begun(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("notebook")
    only_tyler = {', "jackson": build_jackson': ""}
    copy_scripts(folder, {"model-FMNIST.py": only_tyler})
    script = folder / "notebook.py"
    script.write_text(NOTEBOOK)
    arguments = (*small, "--no-sweep", "--jobs", 1)
    with started(*arguments, script=script, cwd=folder) as process:
        yield process


@pytest.fixture(scope="session")
def snippets_begun(tmp_path_factory, util, real_data_dir):
    """README's snippets, one after the other, with a boot, dark on white, and with 9
    steps an epoch."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "fashion-mnist").symlink_to(real_data_dir)
    (folder / "models").symlink_to(MODELS_DIR)
    boot = 255 - util.load_data(real_data_dir)[2][0][0]
    Image.fromarray(boot).resize((280, 280)).save(folder / "my.png")
    parts = [part.split("```")[0] for part in README.split("```python\n")[1:]]
    script = folder / "snippets.py"
    script.write_text("".join(f"exec({part!r}, {{}})\n" for part in parts))
    short = {"KERAS_HOME": str(folder), "KERAS_MAX_STEPS_PER_EPOCH": "9"}
    with started(script=script, cwd=folder, env={**os.environ, **short}) as process:
        yield SimpleNamespace(process=process, folder=folder)


ADDED = ("parker_0", "parker_1", "quinn_0", "quinn_1")
HYPERPARAMETERS = {  # edits of main: a truth value and a text are studied
    '"epochs": 50}': '"epochs": 50, "batch_norm": False, "activation": "relu"}',
    "    epochs: int\n": "    epochs: int\n    batch_norm: bool\n    activation: str\n",
    '    "dropout_rate": (0.1, 0.2, 0.3, 0.4, 0.5),\n': "",
    '    "learning_rate": (0.0001, 0.0003, 0.001, 0.003, 0.01),\n': "",
    '    "batch_size": (32, 64, 128, 256, 512),\n': """
        "epochs": (3, 1), "activation": ("tanh", "elu"), "batch_norm": (True,),
    """,
    'STUDIED = ("tyler",)': 'STUDIED = ("parker", "quinn")',
    'metrics=["accuracy"],': TOP3,
    '"f1": f1,': '"top3": np.mean(np.argsort(-probabilities).T[:3] == true) * 3,',
}


def small_network(
    name, units, use_regularizer, dropout_rate, batch_norm=False, activation="relu"
):
    from keras import Sequential, layers

    l2 = "l2" if use_regularizer else None
    hidden = layers.Dense(units, activation, kernel_regularizer=l2)
    stack = [layers.Input((28, 28)), layers.Flatten(), hidden]
    stack += [layers.BatchNormalization()] if batch_norm else []
    stack += [layers.Dropout(dropout_rate), layers.Dense(10, "softmax")]
    return Sequential(stack, name=name)


@pytest.fixture(scope="module")
def quick(
    util,
    model,
    edit_main,
    real_data_dir,
    tmp_path_factory,
    notebook_begun,
    snippets_begun,
):
    """A quick run on the real data, in this process, with two new networks, both of them
    studied, in place of ours, and with two hyperparameters more. `figures` is {name:
    figure}. Two processes, which other tests will ask, run beside it."""
    folder, output = tmp_path_factory.mktemp("out"), io.StringIO()
    save = mock.Mock(wraps=util.save_figure)
    networks = {"parker": 8, "quinn": 16}  # units
    for name, units in networks.items():
        networks[name] = functools.partial(small_network, name, units)
    main = edit_main(HYPERPARAMETERS)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(model, "NETWORKS", networks)
        patch.setattr(main, "HERE", folder)
        patch.setattr(main, "check_settings", lambda *_: None)
        patch.setattr(util, "local_workers", lambda _: futures.ThreadPoolExecutor(1))
        patch.setattr(util, "save_figure", save)
        arguments = ["--quick", "--batch-size=480", "--seed=7", "--repeats=2"]
        main.main(
            [
                *arguments,
                "--activation=elu",
                "--batch-norm",
                f"--data-dir={real_data_dir}",
            ]
        )
    figures = {it.args[1].stem: it.args[0] for it in save.call_args_list}
    said = output.getvalue()
    return SimpleNamespace(folder=folder / "quick", figures=figures, said=said)


def test_hyperparameters_of_all_types_are_told_apart(quick):
    assert "A quick run cannot be compared" in quick.said
    told = re.findall(r"^Parker +([a-z].*?) +7 +0\.\d+ +\d+$", quick.said, re.MULTILINE)
    assert sorted(told) == ["activation tanh", "final"]
    study = quick.said.partition("Study of Parker")[2].partition("\n\n")[0]
    names = re.findall(r"^(?:  )?(\w.*?) *(?: 0\..*)?$", study, re.MULTILINE)[1:]
    expected = [
        "epochs",
        "1",
        "3",
        "5",
        "activation",
        "tanh",
        "elu",
        "batch norm",
        "True",
    ]
    assert names == expected


def test_tables_say_what_the_trials_and_plain_keras_say(quick, util, real_data_dir):
    """Tested on test images, and validated on images that it does not train on. A saved
    model is the one that its name says, and needs nothing of ours."""
    import keras

    _, (x_val, y_val), (x_test, y_test) = util.load_data(real_data_dir)
    parts = (x_test[:2000], y_test[:2000]), (x_val[:1200], y_val[:1200])
    results = rows(quick.folder / "models/results.csv")
    which = [(row["model"], row["seed"]) for row in results]
    assert which == [(f"model_{name}", seed) for name in ADDED for seed in ("7", "8")]
    names = [*results[0]][1:10]
    assert names[-3:] == ["batch_norm", "activation", "seed"]
    table = quick.folder / "models/history.csv"
    metrics = ["loss", "accuracy", "top3", "val_loss", "val_accuracy", "val_top3"]
    assert [*rows(table)[0]] == [*names, "epoch", *metrics]
    for path in quick.folder.glob(TRIALS):
        saved = description(path)
        which = {name: saved[name] for name in names}
        history = util.read_histories([path])
        assert [*history] == metrics
        history["epoch"] = [range(1, saved["epochs"] + 1)]
        for name, [values] in history.items():
            assert column(table, name, **which) == [*values]
        if found := rows(quick.folder / "models/results.csv", **which):
            [row] = found
            results.remove(row)
            name = f"model_{which['architecture']}_{which['use_regularizer']:d}"
            assert row["model"] == name
            network = keras.models.load_model(path)
            network.run_eagerly = True  # which is faster for once
            measured = [network.evaluate(x / 255, y, 500, verbose=0) for x, y in parts]
            last = rows(table, epoch=5, **which)[0]
            last = [last[name] for name in metrics[3:]]
            scores = np.array([[row[name] for name in metrics[:3]], last], float)
            assert scores == pytest.approx(np.array(measured), rel=1e-3)
            model = quick.folder / f"models/{row['model']}.h5"  # the first seed's
            assert (model.read_bytes() == path.read_bytes()) == (row["seed"] == "7")
            assert saved["training_images"] == 4800
    assert results == [] and len(rows(table)) == 16 * 5


def test_the_study_says_what_the_histories_say(quick):
    folder = quick.folder / "models"
    study = rows(folder / "study.csv")
    for row in study:
        which = {name: row[name] for name in ("architecture", "use_regularizer")}
        which |= {"epochs": 5, "activation": "elu", "batch_norm": True, "epoch": 5}
        reference = column(folder / "history.csv", "val_accuracy", **which)
        which[row["hyperparameter"]] = row["value"]
        if row["hyperparameter"] == "epochs":
            which |= {"epochs": 5, "epoch": row["value"]}
        found = column(folder / "history.csv", "val_accuracy", **which)
        differences = np.subtract(found, reference)
        numbers = [np.mean(found), np.std(found, ddof=1), np.mean(differences)]
        numbers += [np.std(differences, ddof=1) / np.sqrt(2), 2]
        assert [*map(float, [*row.values()][4:])] == pytest.approx(numbers)
    assert len(study) == 4 * (3 + 2 + 1)


def test_pictures_show_what_the_tables_and_models_say(quick, util, real_data_dir):
    """Of each network that NETWORKS has, and of each that STUDIED names."""
    import keras
    from sklearn.metrics import confusion_matrix

    def assert_curve(axes, label, expected):
        curves = dict(zip(*reversed(axes.get_legend_handles_labels())))
        line = getattr(curves[label], "lines", [curves[label]])[0]  # with error bars
        assert [*line.get_ydata()] == pytest.approx(expected)

    *_, (images, labels) = util.load_data(real_data_dir, quick=True)
    tables, labels = quick.folder / "models", labels.argmax(axis=1)
    titles = {name: figure.get_suptitle() for name, figure in quick.figures.items()}
    assert all("quick" in it.get_supxlabel() for it in quick.figures.values())
    panels, best = quick.figures["accuracy_and_loss"].axes, {}
    for name in ADDED:
        network, with_l2 = name[:-2], name[-1] == "1"
        words = "with L2" if with_l2 else "without L2"
        which = {"architecture": network, "use_regularizer": with_l2}
        label = network.title() + (" + L2" if with_l2 else "")
        for axes in quick.figures[f"hyperparameters_{network}"].axes:
            which["hyperparameter"] = axes.get_xlabel().replace(" ", "_")
            points = rows(tables / "study.csv", **which)
            ticks = [text.get_text() for text in axes.get_xticklabels()]
            assert ticks == [row["value"] for row in points]
            assert_curve(axes, words, [float(row["val_accuracy"]) for row in points])
        del which["hyperparameter"]
        which |= {"epochs": 5, "activation": "elu"}
        half = panels[:3] if network == "parker" else panels[3:]
        for axes, metric in zip(half, ("accuracy", "loss", "top3"), strict=True):
            assert axes.get_title() == network.title()
            for part, prefix in (("training", ""), ("validation", "val_")):
                runs = column(tables / "history.csv", prefix + metric, **which)
                mean = np.mean([runs[:5], runs[5:]], axis=0)
                assert_curve(axes, f"{part}, {words}", mean)
        saved = keras.models.load_model(tables / f"model_{name}.h5")
        probabilities = saved.predict(images / 255.0, verbose=0)
        predicted = probabilities.argmax(axis=1)
        matrix = confusion_matrix(labels, predicted, normalize="true")
        shown = quick.figures[f"confusion_matrix_{name}"].axes[0].images[0].get_array()
        np.testing.assert_allclose(shown, matrix, atol=0.011)  # two images on the edge
        accuracy = f"test accuracy {np.mean(predicted == labels):.2%}"
        assert titles[f"confusion_matrix_{name}"] == f"{label}, seed 7: {accuracy}"
        runs = column(tables / "history.csv", "val_accuracy", **which, epoch=5)
        best[np.mean(runs)] = (label, probabilities)
    # The best network's first right ones and its most confident mistakes.
    label, probabilities = best[max(best)]
    assert titles["predictions"].startswith(f"{label}, seed 7: ")
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = sorted(np.flatnonzero(predicted != labels), key=lambda i: -confidence[i])
    shown = [*np.flatnonzero(predicted == labels)[:6], *wrong[:6]]
    for axes, i in zip(quick.figures["predictions"].axes, shown, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[i])
        assert f"predicted: {util.CLASS_NAMES[predicted[i]]}\n" in axes.get_title()


DIE = """
import os, sys
if "--multiprocessing-fork" in sys.orig_argv and not os.path.exists(os.environ["DIED"]):
    open(os.environ["DIED"], "w").close()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("without_workers")
def test_two_runs_in_a_folder_a_dead_worker_ctrl_c_and_kill_9_lose_nothing(
    whole, small, call, util, tmp_path, monkeypatch
):
    """Nothing is lost but the trials under way, and the end is the same."""
    folder = tmp_path / "out"
    arguments = (*small, "--no-sweep", "--output-dir", folder, "--jobs", 1)
    (tmp_path / "sitecustomize.py").write_text(DIE)  # every Python runs this first
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "DIED": str(tmp_path / "died")}
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
    kept = [it for it in folder.glob(TRIALS) if description(it)["seed"] == 7]
    assert {*os.listdir(folder)} == {".trials"} and 1 <= len(kept) <= 4
    os.truncate(kept[0], 300_000)  # as a bad disk does
    (folder / "models").mkdir()
    (folder / "models/study.csv").write_text("theirs")
    monkeypatch.setattr(util, "draw", lambda *_: None)
    again = call(*arguments)
    assert "Left from an earlier run: study.csv" in again
    count = re.search(r"\d+ trials, (\d+) of them trained before", again)
    assert int(count[1]) == len(kept) - 1
    assert_same(folder, whole.folder)


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def test_a_machines_limits_are_named_in_one_line(
    small, call, util, tmp_path, monkeypatch
):
    """Models have 700,000 bytes, and a file's size is limited. Then, no semaphores."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = (*small, "--jobs", 1, "--output-dir", tmp_path / "out")
    options = {"env": {**os.environ, "TMPDIR": str(temporary)}, "limit": limit_files}
    with started(*arguments, **options) as process:
        said = finish(process, status=2)
        assert "large" in said and str(temporary) in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    no_semaphores = mock.Mock(side_effect=OSError(30, "Read-only file system"))
    monkeypatch.setattr(futures, "ProcessPoolExecutor", no_semaphores)
    monkeypatch.setattr(util, "is_whole", lambda _: False)
    with (
        pytest.raises(util.InputError, match="/dev/shm"),
        util.local_workers(SimpleNamespace(jobs=1)),
    ):
        pass


def test_closed_streams_and_the_first_line(small, tmp_path):
    """`| head` ends the program in silence, and 2>&- does not. What takes no TensorFlow
    is told before TensorFlow starts."""
    command = f"{sys.executable} {PROJECT / SCRIPT} {' '.join(map(str, small))}"
    command += f" --output-dir {tmp_path}/out"
    options = {"shell": True, "capture_output": True, "text": True}
    said = subprocess.run(
        f"{command} --no-sweep --jobs 1 | head -n 1", check=False, **options
    )
    assert said.stdout.startswith("Fashion-MNIST: ")
    assert not re.search("Error|Traceback", said.stderr)
    model = MODELS_DIR / "model_tyler_0.h5"
    said = subprocess.run(f"{command} --evaluate {model} 2>&-", check=False, **options)
    assert said.returncode == 0 and "test images: loss" in said.stdout
    for wrong in ("--output-dir /proc/nowhere", "--cluster tcp://127.0.0.1:1"):
        tracing = command.replace(" ", " -X importtime ", 1)
        said = subprocess.run(f"{tracing} {wrong}", check=False, **options)
        assert said.returncode == 2 and "Fashion-MNIST: " in said.stdout
        assert "| numpy\n" in said.stderr and not re.search(
            "[| ]tensorflow", said.stderr
        )


FAULTS = {  # edits of main and model, or what a builder does: the words of the line
    'STUDIED = ("tyler",)': ("STUDIED = ('jackson')", "STUDIED: write (\"jackson\",)"),
    '("tyler",)': ("('parkr',)", "STUDIED names parkr"),
    '"batch_size": (32, 64, 128, 256, 512)': ('"batch_size": (64)', "batch_size needs its values in"),
    "(32, 64, 128, 256, 512)": ("(0,)", "STUDY: batch_size: only numbers from 1"),
    "(32, 64, 128, 256, 512),": ("(64.0,),", "STUDY: batch_size 64.0 is not"),
    '    "dropout_rate": (0.1,': ('    "drop_rate": (0.1,', "drop_rate, which FINAL lacks"),
    "    epochs: int\n": ("    epochs: int\n    momentum: float\n", "momentum must be in"),
    'metrics=["accuracy"]': ("metrics=[]", 'metrics=["accuracy", ...]'),
    'loss="categorical_crossentropy",\n ': ("loss=lambda y, p: p[:, 0],\n ", "register_keras_serializable"),
    '"f1": f1': ('"f1": f2', "NameError: name 'f2'"),
    "util.adam(setting.learning_rate)": (
        "util.adam(0.1, amsgrad=True)", "util.adam has no amsgrad",
    ),
    '"epochs": 50}': ('"epochs": 50.0}', "FINAL: epochs must be a whole number"),
    '128, "epochs"': ('128, "loss": 1, "epochs"', "loss must be in FINAL"),
    "np.mean(true == predicted)": ("true == predicted", "TypeError: "),
}  # fmt: skip


@pytest.mark.parametrize("old", FAULTS)
def test_a_faulty_edit_is_told_before_any_training(
    small, util, edit_main, capsys, monkeypatch, tmp_path, old
):
    monkeypatch.setattr(util, "train_in_workers", None)
    new, words = FAULTS[old]
    main = edit_main({old: new})
    with pytest.raises(SystemExit, match="2"):
        main.main([*map(str, small), f"--output-dir={tmp_path}"])
    [*_, line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_wrong_input_is_named_in_one_line(
    call, small, main, model, util, tmp_path, monkeypatch
):
    """Also a network that cannot work: nothing is trained before."""
    arguments = (*small, "--output-dir", tmp_path / "output")
    for wrong in (
        "--epochs 1.5", "--dropout-rate 1", "--learning-rate nan", "--batch-size 0",
        "--jobs 0", "--seed -1", "--nonsense", "--fresh", "--data-dir /no/such/folder",
        "--output-dir /proc/nowhere", "--evaluate /no/such.h5",
    ):  # fmt: skip
        line = call(*arguments, *wrong.split(), status=2)
        assert wrong.split()[-1 if "/" in wrong else 0] in line
        assert "--output-dir" in line or "output" not in wrong
    monkeypatch.setattr(util, "train_in_workers", None)
    monkeypatch.setattr(main, "STUDIED", ())
    for builder, words in (
        (functools.partial(model.build_tyler, 11), "Parker: ValueError: "),
        (lambda **values: 1 / 0, "Parker: ZeroDivisionError"),
    ):
        monkeypatch.setattr(model, "NETWORKS", {"parker": builder})
        assert words in call(*arguments, "--no-sweep", status=2)
    assert {*os.listdir(tmp_path)} == {"output"}
    monkeypatch.setenv("HOME", str(tmp_path))
    options = main.parse_options(
        ["--output-dir=~/run", "--data-dir=~/x", "--evaluate", "~/m"]
    )
    assert options.folder == tmp_path / "run" and options.data_dir == tmp_path / "x"
    assert options.evaluate == [tmp_path / "m"]


def test_help_is_narrow_and_needs_no_tensorflow():
    command = [sys.executable, "-OO", "-X", "importtime", PROJECT / SCRIPT, "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert not re.search("tensorflow|keras|sklearn|matplotlib", said.stderr)
    options = set(re.findall(r"--[a-z-]+", said.stdout)) - {"--help"}
    described = README.split("## Options")[1].split("\n## ")[0]
    assert set(re.findall("`(--[a-z-]+)", described)) == options


def test_evaluate_describes_each_file(whole, data, small, main, tmp_path, capsys):
    """A bad file does not keep it from the others: one of ours, and models of somebody
    who gives logits and trained on pixels from 0 to 255, or who gives eleven outputs and
    trained on colours from -1 to 1, or whose training diverged."""
    import keras

    folder, (images, labels) = tmp_path / "models", data[2]
    x = images[..., None] * np.float32(1)
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    theirs = keras.Sequential(layers)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    theirs.compile("adam", loss, metrics=["accuracy"])
    theirs.fit(x, labels, batch_size=10, epochs=9, verbose=0)
    theirs.layers[-1].bias.assign(np.arange(10))  # misleads it on smaller pixels
    folder.mkdir()
    theirs.save(folder / "raw.keras")
    third = keras.initializers.Constant(1 / 3)
    layers = [
        keras.Input((28, 28, 3)),
        keras.layers.Rescaling(127.5, 127.5),
        keras.layers.ReLU(max_value=255),
        keras.layers.Conv2D(1, 1, kernel_initializer=third),
        theirs,
    ]
    eleven = keras.layers.Dense(11, "softmax", kernel_initializer="identity")
    keras.Sequential([*layers, eleven]).save(folder / "signed.h5")
    theirs.layers[-1].bias.assign(np.full(10, np.nan))
    theirs.save(folder / "nan.h5")
    (folder / "bad.h5").write_text("<html>")
    shutil.copy(whole.folder / "models/model_tyler_1.h5", folder / "model_tyler_1.h5")
    (folder / "results.csv").write_text("architecture\njackson\n")

    def evaluate(*arguments):
        with pytest.raises(SystemExit, match="2"):
            main.main([f"--output-dir={tmp_path}", *arguments, "--evaluate"])
        return capsys.readouterr()

    output, error = evaluate(f"--data-dir={small[-1]}")
    assert "bad.h5" in error and "web page" in error
    assert len([*tmp_path.rglob("*")]) == 7  # it writes nothing
    _, ours, diverged, raw, signed = output.split(f"\n{folder}/")
    [row] = rows(whole.folder / "models/results.csv", model="model_tyler_1")
    means = [f"{float(row[score]):.2f}" for score in SCORES[2:]]
    assert re.search("macro avg +" + " +".join(means), ours)
    assert " ".join(f"{score} {float(row[score]):.4f}" for score in SCORES) in ours
    saved = description(folder / "model_tyler_1.h5")
    for field in (*main.Setting._fields, "seed", "keras_version"):
        assert re.search(rf"^{field} +{saved[field]}$", ours, re.MULTILINE)
    assert ours.count("rate 0.3") == 1 and ours.count("L2 0.001") == 5
    assert not re.search("0 to 255|logits|other images", ours)
    assert "left from an earlier run" in ours  # results.csv has no Tyler
    theirs = keras.models.load_model(folder / "raw.keras")
    high, low = [theirs.evaluate(pixels, labels, verbose=0) for pixels in (x, x / 255)]
    assert "Its outputs are logits" in raw
    assert f"loss {low[0]:.4f} accuracy {low[1]:.4f} " in raw
    assert f"pixels from 0 to 255: on those, accuracy {high[1]:.4f}\n" in raw
    assert f"pixels from -1 to 1: on those, accuracy {high[1]:.4f}\n" in signed
    assert "It has diverged" in diverged and "accuracy" not in diverged
    assert "It was trained on other images" in evaluate().out  # not on the real ones


def test_a_notebook_runs_it_again_as_it_is_edited(notebook_begun):
    """Edited words train nothing, an edited layer does."""
    output, error = notebook_begun.communicate(timeout=200)
    _, first, second, third = output.split("RUN\n")
    assert "\n2 trials, 0 of them trained" in first and "Testing the" in first
    assert "\n2 trials, 2 of them trained" in second
    assert "Measuring the" in second and "\nResults" in second
    assert "\n2 trials, 0 of them trained" in third
    assert "Warning: " in error and "Traceback" not in error


@pytest.mark.usefixtures("without_workers")
def test_a_cluster_trains_the_same_and_refuses_other_scripts(
    whole, call, model, util, small, tmp_path, monkeypatch
):
    import distributed

    monkeypatch.delitem(model.NETWORKS, "jackson")  # to be fast
    arguments = (*small, "--no-sweep", "--output-dir", tmp_path / "out", "--cluster")
    other = {"keras.utils.set_random_seed(seed)": "keras.utils.set_random_seed(0)"}
    edited = copy_scripts(tmp_path / "edited", {SCRIPT: other})
    contact = tmp_path / "scheduler.json"
    with contextlib.ExitStack() as stack:

        def launch(folder, *arguments):
            command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command, cwd=folder, **quiet)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        local = ("--host=127.0.0.1", "--port=0", f"--scheduler-file={contact}")
        launch(PROJECT, "scheduler", *local)
        while not contact.exists():
            time.sleep(0.05)
        address = json.loads(contact.read_text())["address"]
        client = stack.enter_context(distributed.Client(address, set_as_default=False))
        options = ("worker", address, "--no-nanny", "--nthreads=1")
        worker = launch(edited, *options)
        client.wait_for_workers(1)
        assert "a worker's scripts" in call(*arguments, address, status=2)
        worker.kill()
        launch(PROJECT, *options)
        launch(PROJECT, *options)
        client.wait_for_workers(2)
        assert "\n2 trials, 0 of them" in call(*arguments, address)
        assert_same(tmp_path / "out", whole.folder)
        for method, fault, words in (
            ("nthreads", {"return_value": {"worker": 2}}, "--nthreads 1"),
            ("get_executor", {"side_effect": futures.CancelledError}, "are lost"),
        ):
            with mock.patch.object(distributed.Client, method, **fault):
                assert words in call(*arguments, address, "--seed", 8, status=2)
    monkeypatch.setattr(util, "TIMEOUT", 1)
    with http.server.HTTPServer(("127.0.0.1", 0), mock.Mock()) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"tcp://127.0.0.1:{web.server_port}"  # as a dashboard's
        assert f"--cluster {address}" in call(*arguments, address, status=2)
        web.shutdown()


SHA256 = "9089793518537272509361635147a22ef05abf3b8edfb07628739673fc9b67e6"


def test_readme_has_what_models_and_the_program_have(main, util, real_data_dir, capsys):
    results = MODELS_DIR / "results.csv"
    ours = hashlib.sha256(results.read_bytes()).hexdigest()
    if ours != SHA256 and "CI" not in os.environ:
        pytest.skip("models/ holds a run of your own")
    *_, test = util.load_data(real_data_dir)
    tests = {}
    for row in rows(results):
        with_l2 = row["use_regularizer"] == "True"
        setting = main.Setting(row["architecture"], with_l2, 0.3, 0.001, 128, 50)
        scores = {score: float(row[score]) for score in SCORES}
        tests.setdefault(setting, []).append((scores, None))
        if row["seed"] == "0":
            network = util.load_classifier(MODELS_DIR / f"{row['model']}.h5")
            assert main.test_model(network, test)[0] == pytest.approx(scores, abs=1e-3)
    assert [len(seeds) for seeds in tests.values()] == [10] * 4
    util.report_results(tests)
    lines = capsys.readouterr().out.splitlines()[2:]
    for label, mean, deviation in zip(NETWORKS, lines[0:8:2], lines[1:8:2]):
        loss, accuracy = zip(mean.split()[-5:][:2], deviation.split())
        ours = f"{' '.join(accuracy)}, {' '.join(loss)}".replace("±", "± ")
        published = rf"\| {re.escape(label)} \| (0\.\d+), 0\.\d+ \| {ours} \| "
        assert re.findall(published, README) == [f"{main.PUBLISHED[label]}"]
    for line in lines[9:12]:
        assert line.replace(", standard error", " ±") in " ".join(README.split())
    study, gaps = {}, {}
    for row in rows(MODELS_DIR / "study.csv"):
        setting = f"{row['hyperparameter'].replace('_', ' ')} {row['value']}"
        mean, deviation, gap, error = map(float, [*row.values()][4:8])
        cells = f" | {mean:.4f} ± {deviation:.4f} | {gap:+.4f} ± {error:.4f}"
        study[setting] = study.get(setting, "") + cells
        gaps[setting, row["use_regularizer"]] = f"{gap:+.4f}"
    found = {f"| {setting}{cells} |" for setting, cells in study.items()}
    assert {line for line in README.splitlines() if line.count(" | ") == 4} >= found
    assert f"(models/study.csv, {row['seeds']} seeds)" in README
    findings = (
        r"^\| (learning rate|batch size|epochs) ([^|±]+) \| ([^|]+) \| ([^|]+) \|$"
    )
    findings = re.findall(findings, README, re.MULTILINE)
    for name, values, *columns in findings:
        for use_regularizer, cells in zip(("False", "True"), columns):
            for value, cell in zip(values.split(", "), cells.split(", ")):
                assert cell in (gaps[f"{name} {value}", use_regularizer], "–")
    assert len(findings) == 5


def test_readme_snippets_work_alone(snippets_begun):
    output, error = snippets_begun.process.communicate(timeout=200)
    assert snippets_begun.process.returncode == 0, error
    assert re.search(r"^Ankle-boot +\d", output, re.MULTILINE)
    assert (snippets_begun.folder / "my-model.keras").exists()
