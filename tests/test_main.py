"""The program as its users meet it, and the training behind it."""

import contextlib
import csv
import gc
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

SCRIPT = PROJECT / "main-FMNIST.py"
NETWORKS = ("Tyler", "Tyler + L2", "Jackson", "Jackson + L2")
NAMES = ("tyler_0", "tyler_1", "jackson_0", "jackson_1")
MODELS, TABLES = {f"model_{name}.h5" for name in NAMES}, {"history.csv", "results.csv"}
MATRICES = {f"confusion_matrix_{name}.png" for name in NAMES}
PLOTS = {*MATRICES, "accuracy_tyler.png", "accuracy_jackson.png", "predictions.png"}
FOLDERS = {"models", "plots"}
SCORES = ("accuracy", "precision", "recall", "f1", "loss")
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


@pytest.fixture(scope="session")
def eight(data_dir):
    """eight(folder) are the arguments of a run of eight trials into this folder."""
    arguments = (*SETTING, "--no-sweep", "--repeats", 2, "--data-dir", data_dir)
    return lambda folder: (*arguments, "--output-dir", folder)


def wait_for_kept(folder, count, process):
    while len(list(folder.glob(".trials/*.h5"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def with_startup_code(folder, code):
    """An environment in which every Python process runs this code first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def names(folder):
    return {path.name for path in folder.iterdir()}


def assert_same(ours, theirs, files=(*MODELS, *TABLES)):
    """The same weights, histories and tables, to the last byte."""
    for path in [f"models/{name}" for name in files]:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path


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


@pytest.fixture(scope="session")
def alone(tmp_path_factory, main, util, data, eight):
    """Eight trials, one at a time, into a folder with files and a kept trial."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ("models/mine.h5", "plots/mine", "plots/hyperparameters_tyler.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    trial = main.Trial("tyler", False, 0.3, 0.001, 64, 2, 7)
    (folder / ".trials").mkdir()
    util.keep_trial(folder / ".trials", util.trial_keys([trial], data[:2])[trial], b"")
    output = run(*eight(folder), "--jobs", 1, "--fresh")
    return SimpleNamespace(folder=folder, output=output)


def test_the_terminal_tells_the_story_in_narrow_lines(whole):
    lines = whole.output.splitlines()
    assert lines[0].startswith("28 trials, 0 of them kept")
    assert sum(line.startswith(("Tyler", "Jackson")) for line in lines) == 28 + 4
    assert "Testing the models" in lines and "Drawing the plots" in lines
    assert [line[:12].strip() for line in lines[-6:-2]] == list(NETWORKS)
    assert "about 0.88" in lines[-2] and str(whole.folder) in lines[-1]
    assert max(map(len, lines[:-1])) <= 60


def test_every_file_is_there_and_complete(whole, main, util):
    assert names(whole.folder) == {p.name for p in PROJECT.glob("*.py")} | FOLDERS
    assert names(whole.folder / "models") == MODELS | TABLES
    assert names(whole.folder / "plots") == PLOTS | {"hyperparameters_tyler.png"}
    assert whole.left == set()
    history = rows(whole.folder / "models/history.csv")
    trials = {tuple(row[field] for field in main.Trial._fields) for row in history}
    assert len(trials) == 28
    assert [row["epoch"] for row in history] == ["1", "2"] * 28
    saved = util.read_history(whole.folder / "models/model_tyler_0.h5")
    for metric, values in saved.items():
        assert [float(row[metric]) for row in history[:2]] == list(values)


def test_plain_keras_measures_the_same_and_trains_on(whole, data):
    """A saved model needs nothing of ours."""
    import keras

    images, labels = data[2][0] / 255, data[2][1]
    results = rows(whole.folder / "models/results.csv")
    assert [row["model"] for row in results] == [f"model_{name}" for name in NAMES]
    for row in results:
        model = keras.models.load_model(whole.folder / f"models/{row['model']}.h5")
        loss, accuracy = model.evaluate(images, labels, verbose=0)
        found = [float(row[score]) for score in ("loss", "accuracy", "recall")]
        right = model.predict(images, verbose=0).argmax(1) == labels.argmax(1)
        recall = np.mean([right[of_class == 1].mean() for of_class in labels.T])
        assert found == pytest.approx([loss, accuracy, recall], rel=1e-4)
        before = model.layers[1].kernel.numpy()
        model.fit(images, labels, verbose=0)
        assert (model.layers[1].kernel.numpy() != before).any()


def test_a_sure_mistake_costs_what_keras_says(main, data, tmp_path):
    """Keras takes the loss from the logits; probabilities would be clipped at 1e-7."""
    model = main.build_model(main.Trial("tyler", False, 0.3, 0.001, 64, 1, 0))
    model.layers[-1].kernel.assign(1000 * model.layers[-1].kernel)
    model.save(tmp_path / "model.h5")
    images, labels = data[2]
    loss, _ = model.evaluate(images / 255, labels, verbose=0)
    scores = main.score_file(tmp_path / "model.h5", data[2])[1]
    assert scores["loss"] == pytest.approx(loss, rel=1e-4) and loss > 20


def test_repeats_show_their_spread_and_change_no_weights(whole, alone):
    assert_same(alone.folder, whole.folder, MODELS)  # with other --jobs and trials, too
    table = alone.output.partition("Test results")[2].splitlines()
    assert [line.count("±") for line in table[1:9]] == [0, 5] * 4
    results = rows(alone.folder / "models/results.csv")
    assert [row["seed"] for row in results] == ["7", "8"] * 4


def test_a_run_touches_no_other_file_and_fresh_starts_anew(alone):
    mine = {p.name for p in alone.folder.glob("*/*") if p.read_bytes() == b"mine"}
    assert mine == {"mine.h5", "mine", "hyperparameters_tyler.png"}
    assert alone.output.startswith("8 trials, 0 of them kept")


# ---------------------------------------------------------------------- the training
@pytest.mark.parametrize("name", NAMES)
def test_training_does_the_arithmetic_of_fit(main, util, data, name):
    """Without dropout and shuffling, nothing is left to chance."""
    (images, labels), (x_val, y_val), _ = data
    size = {"0": 250, "1": 601}[name[-1]]  # a smaller batch remains; all data are one
    trial = main.Trial(name[:-2], name[-1] == "1", 0.0, 0.001, size, 2, 3)
    ours, theirs = main.build_model(trial), main.build_model(trial)
    run_epoch, history = main.epoch_function(ours), []
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
        np.testing.assert_allclose(values, fit.history[metric], rtol=1e-3)


def test_a_short_training_on_the_real_data_works(main, util, real_data_dir, tmp_path):
    """Two epochs of Tyler: far beyond what a broken pipeline would reach."""
    train, validation, test = util.load_data(real_data_dir)
    trial = main.Trial("tyler", False, 0.3, 0.001, 128, 2, 0)
    path = tmp_path / "model.h5"
    path.write_bytes(main.train_trial(trial, train, validation))
    assert 0.84 < util.read_history(path)["val_accuracy"][-1] < 0.90
    assert 0.83 < main.score_file(path, test)[1]["accuracy"] < 0.89


def test_a_trial_leaves_nothing_in_its_worker(main, data):
    """A model and its graphs refer to each other and would pile up."""
    import keras

    trial, counts = main.Trial("tyler", False, 0.3, 0.001, 300, 1, 0), []
    gc.disable()  # so that it is train_trial that collects, not chance
    for _ in range(3):
        main.train_trial(trial, *data[:2])
        counts.append(sum(type(x) is keras.Sequential for x in gc.get_objects()))
    gc.enable()
    assert counts == counts[:1] * 3


def test_a_diverging_trial_stops_itself_alone(main, call, data, eight, tmp_path):
    trial, ended = main.Trial("jackson", True, 0.3, 1e11, 64, 9, 0), []
    main.train_trial(trial, *data[:2], lambda: ended.append(1))
    assert len(ended) < 9
    output = call(*eight(tmp_path), "--learning-rate", "1e11", "--repeats", 1)
    assert re.search(r"Jackson \+ L2 .*diverged", output)
    history = rows(tmp_path / "models/history.csv")
    assert len(history) == 8 and history[-1]["val_accuracy"] == "nan"  # Jackson's
    assert names(tmp_path / "plots") == PLOTS


def test_the_bar_moves_before_the_first_trial_ends(eight, tmp_path):
    terminal, inside = os.openpty()
    environment, shown = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}, ""
    arguments = (*eight(tmp_path), "--repeats", 1, "--epochs", 300)
    with started(*arguments, stdout=inside, env=environment):
        os.close(inside)
        while not re.search(r"[1-9]%", shown):
            shown += os.read(terminal, 1000).decode(errors="ignore")
    assert "Training" in shown and "Jackson" not in shown


# ------------------------------------------------------------------ interrupted runs
@pytest.fixture(scope="session")
def interrupted(tmp_path_factory, eight):
    """A run that Ctrl-C ended when some of its trials were finished."""
    folder = tmp_path_factory.mktemp("interrupted")
    with started(*eight(folder)) as process:
        wait_for_kept(folder, 2, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to every process
        return SimpleNamespace(folder=folder, line=finish(process, status=130))


@pytest.fixture
def folder_and_kept(interrupted, tmp_path):
    """A copy of the interrupted run's folder, and its kept trials."""
    folder = shutil.copytree(interrupted.folder, tmp_path / "output")
    return folder, sorted(folder.glob(".trials/*.h5"))


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


def test_ctrl_c_says_what_is_kept_and_publishes_nothing(interrupted):
    kept = len(list(interrupted.folder.glob(".trials/*.h5")))
    assert 2 <= kept < 8
    assert f"interrupted; {kept} finished trials" in interrupted.line
    assert not list(interrupted.folder.glob("[mp]*/*"))


FULL_DISK = (resource.RLIMIT_FSIZE, (500_000,) * 2)  # models have 700,000 bytes
LITTLE_MEMORY = (resource.RLIMIT_AS, (1_500_000_000,) * 2)


@pytest.mark.parametrize("limit", [FULL_DISK, LITTLE_MEMORY])
def test_a_small_machine_costs_no_kept_trial(folder_and_kept, eight, limit):
    folder, kept = folder_and_kept
    with started(*eight(folder)) as process:
        resource.prlimit(process.pid, *limit)
        assert f"{len(kept)} finished trials" in finish(process, status=2)
    assert sorted(folder.glob(".trials/*.h5")) == kept
    assert not list(folder.glob("[mp]*/*"))


KILL_WHILE_PUBLISHING = """
import itertools, os
moved = itertools.count()
def replace(source, target):
    if ".unfinished" in str(source) and next(moved) == 3:
        os.kill(os.getpid(), 9)
    os.rename(source, target)
os.replace = replace
"""


def test_a_run_killed_and_damaged_ends_like_one_left_alone(
    folder_and_kept, alone, eight, tmp_path
):
    folder, kept = folder_and_kept
    content = bytearray(kept[0].read_bytes())
    content[len(content) // 2] ^= 1
    kept[0].write_bytes(content)
    with started(*eight(folder)) as process:
        wait_for_kept(folder, len(kept) + 1, process)
        process.kill()
        output = finish(process, status=-signal.SIGKILL)
    assert output.startswith(f"8 trials, {len(kept) - 1} of them kept")
    environment = with_startup_code(tmp_path / "startup", KILL_WHILE_PUBLISHING)
    run(*eight(folder), status=-signal.SIGKILL, env=environment)
    published = names(folder / "models") - {".unfinished"}
    assert len(published) == 3
    assert_same(folder, alone.folder, published)
    assert run(*eight(folder)).startswith("8 trials, 8 of them kept")
    assert_same(folder, alone.folder)
    assert names(folder) | names(folder / "plots") == FOLDERS | PLOTS


@pytest.mark.parametrize("delay", [1.5, 4])
def test_ctrl_c_at_the_start_is_one_line(eight, tmp_path, delay):
    with started(*eight(tmp_path), "--epochs", 100_000) as process:
        while not (tmp_path / ".trials").exists():
            time.sleep(0.01)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        assert "interrupted" in finish(process, status=130)


DIE_IN_A_WORKER = """
import multiprocessing, os
write = os.write
def write_some_and_die(file, data):
    if len(data) < 100 or not multiprocessing.parent_process() or os.path.exists("died"):
        return write(file, data)
    open("died", "w").close()
    write(file, data[:4096])  # what a pipe takes as a whole
    os.kill(os.getpid(), 9)
os.write = write_some_and_die
"""


def test_a_worker_may_die_while_it_sends_a_trial(alone, eight, tmp_path):
    environment = with_startup_code(tmp_path / "startup", DIE_IN_A_WORKER)
    arguments = (*eight(tmp_path / "output"), "--repeats", 1)
    output = run(*arguments, env=environment, cwd=tmp_path)
    assert output.count("A worker process died.") == 1
    assert_same(tmp_path / "output", alone.folder, MODELS)


def test_a_second_run_into_the_same_folder_is_refused(util, eight, tmp_path):
    with util.output_folders(tmp_path):
        assert "another run" in run(*eight(tmp_path), status=2)


# ------------------------------------------------- wrong input and odd environments
@pytest.mark.parametrize(
    "arguments", [
        "--epochs 1.5", "--dropout-rate 1", "--learning-rate nan", "--batch-size 0",
        "--jobs 0", "--seed -1", "--nonsense", "--data-dir /no/such/folder",
        "--output-dir /proc/nowhere", "--evaluate /no/such.h5", f"--evaluate {__file__}",
    ]
)  # fmt: skip
def test_wrong_input_is_named_in_one_line(call, eight, tmp_path, arguments):
    line = call(*eight(tmp_path / "output"), *arguments.split(), status=2)
    assert arguments.split()[-1 if "/" in arguments else 0] in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_help_is_narrow_and_needs_no_tensorflow():
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--evaluate" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert not re.search("tensorflow|keras|sklearn|matplotlib", said.stderr)


WITHOUT_POSIX = """
import os, signal, sys
sys.modules |= dict.fromkeys("fcntl resource termios tty pty pwd grp syslog".split())
for name in "fork forkpty setsid getsid getuid geteuid killpg sysconf".split():
    delattr(os, name)
for name in "pthread_sigmask pthread_kill sigwait setitimer alarm SIGALRM SIGHUP".split():
    delattr(signal, name)
"""
ODD = {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error"}


@pytest.mark.parametrize(("settings", "code"), [(ODD, ""), ({}, WITHOUT_POSIX)])
def test_an_odd_environment_changes_nothing(alone, eight, tmp_path, settings, code):
    keras_settings = {"floatx": "float64", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(keras_settings))
    environment = with_startup_code(tmp_path / "startup", code) | settings
    environment["KERAS_HOME"] = str(tmp_path)
    run(*eight(tmp_path / "output"), env=environment)
    assert_same(tmp_path / "output", alone.folder)


# ------------------------------------------------------------------------ evaluation
def test_evaluate_describes_each_file(whole, call, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole.folder / "models", tmp_path / "models")
    base = ("--data-dir", data_dir, "--output-dir", tmp_path, "--evaluate")
    output = call(*base)
    pictures = {path: path.read_bytes() for path in tmp_path.glob("plots/*")}
    assert {path.name for path in pictures} == MATRICES
    for name, row in zip(NAMES, rows(tmp_path / "models/results.csv")):
        scores = ".*".join(f"{score} {float(row[score]):.4f}" for score in SCORES[:4])
        picture = f"plots/confusion_matrix_{name}.png"
        story = f"models/model_{name}.h5\n.*hidden_4 .*Ankle boot .*{scores}.*{picture}"
        assert re.search(story, output, re.DOTALL)

    others = ("a/b_c.h5", "a_b/c.h5", "a/model_tyler_0.h5", "x" * 250 + ".h5")
    for other in others:
        Path(other).parent.mkdir(exist_ok=True)
        shutil.copy("models/model_jackson_1.h5", other)
    output = call(*base, "models/model_tyler_0.h5", *others)
    drawn = {path: path.read_bytes() for path in tmp_path.glob("plots/*")}
    assert drawn.items() >= pictures.items() and len(drawn) == 4 + len(others)
    assert all(str(path) in output for path in drawn.keys() - pictures.keys())


def test_ctrl_c_in_evaluate(main, call, eight, folder_and_kept, monkeypatch):
    press_ctrl_c = lambda *_: signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(main, "score_file", press_ctrl_c)
    line = call(*eight(folder_and_kept[0]), "--evaluate", "model.h5", status=130)
    assert "interrupted" in line and "kept" not in line


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


def test_a_cluster_may_lose_one(alone, call, cluster, before_keeping, eight, tmp_path):
    address, _, add_worker = cluster
    before_keeping(add_worker(1).kill)
    add_worker(2)
    call(*eight(tmp_path), "--cluster", address)
    assert_same(tmp_path, alone.folder)


def test_a_cluster_that_fails_is_told_in_one_line(
    call, cluster, util, before_keeping, eight, tmp_path, monkeypatch
):
    address, scheduler, add_worker = cluster
    named = f"--cluster {address}"
    arguments = (*eight(tmp_path), *named.split())
    with monkeypatch.context() as patch:
        patch.setattr(util, "TIMEOUT", 2)
        assert named in call(*arguments, status=2)  # it has no workers yet
        nobody = "--cluster tcp://127.0.0.1:1"
        assert nobody in call(*arguments, *nobody.split(), status=2)
    add_worker(1)
    with monkeypatch.context() as patch:
        patch.setattr(util, "library_versions", lambda: {"pid": os.getpid()})
        line = call(*arguments, status=2)
    assert named in line and "versions differ" in line
    before_keeping(lambda: Path("/dev/full").write_text("no space"))
    line = call(*arguments, status=2)
    assert "No space" in line and "--cluster" not in line
    before_keeping(scheduler.kill)
    line = call(*arguments, status=2)
    assert named in line and "1 finished trials" in line


# --------------------------------------------------------- what the repository holds
RESULTS = PROJECT / "models/results.csv"
SHA256 = "18033ce8e6bc123cc8e5b1332bfc63edfddc19b9f3caa41727bb6dfe7076599d"


@pytest.fixture
def published():
    """The published results and README. The tests are not about a run of your own."""
    ours = RESULTS.exists() and hashlib.sha256(RESULTS.read_bytes()).hexdigest()
    if ours != SHA256 and "CI" not in os.environ:
        pytest.skip("models/ holds a run of your own")
    return rows(RESULTS), (PROJECT / "README.md").read_text(encoding="utf-8")


def mean_and_deviation(values):
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def difference(one, other):
    """The difference of two means, and its standard error."""
    error = np.sqrt(np.var(one, ddof=1) / len(one) + np.var(other, ddof=1) / len(other))
    return f"{np.mean(one) - np.mean(other):+.4f} ± {error:.4f}"


def test_readme_has_the_published_results(published):
    results, readme = published
    accuracies = {}
    for network, name in zip(NETWORKS, NAMES):
        seeds = [row for row in results if row["model"] == f"model_{name}"]
        values = {score: [float(row[score]) for row in seeds] for score in SCORES}
        cells = " | ".join(map(mean_and_deviation, values.values()))
        assert f"\n| {network} | {cells} |" in readme
        accuracies[network] = values["accuracy"]
    pairs = [NETWORKS[::2], NETWORKS[:2], NETWORKS[2:]]
    for one, other in pairs:
        gap = difference(accuracies[one], accuracies[other])
        assert f"\n| {one} against {other} | {gap} |" in readme


def test_readme_has_the_published_study(published, main):
    _, readme = published
    history, points = {}, {}
    for row in rows(PROJECT / "models/history.csv"):
        setting = tuple(row[field] for field in main.Trial._fields[:-1])
        key = (*setting, row["epoch"])
        history.setdefault(key, []).append(float(row["val_accuracy"]))
    final = main.final_trials(main.parse_options([]))
    for name, value, trial, epoch in main.study_points(final):
        label = f"{trial.network}, {name.replace('_', ' ')} {value:g}"
        points[label] = history[tuple(map(str, (*trial[:-1], epoch)))]
    best = max(points, key=lambda label: np.mean(points[label]))
    for label in (best, "Tyler, learning rate 0.01", "Tyler + L2, learning rate 0.01"):
        published_setting = points[f"{label.partition(',')[0]}, dropout rate 0.3"]
        gap = difference(points[label], published_setting)
        cells = f"{mean_and_deviation(points[label])} | {gap}"
        assert f"\n| {label} | {cells} |" in readme


def test_published_models_score_the_same(published, main, util, real_data_dir):
    *_, test = util.load_data(real_data_dir)
    for name in NAMES:
        row = next(row for row in published[0] if row["model"] == f"model_{name}")
        _, scores, _ = main.score_file(PROJECT / f"models/model_{name}.h5", test)
        expected = {score: float(row[score]) for score in SCORES}
        assert scores == pytest.approx(expected, abs=1e-3)


def test_readme_code_runs(published, util, real_data_dir, tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "fashion-mnist").symlink_to(real_data_dir)
    (tmp_path / "models").symlink_to(PROJECT / "models")
    boot = util.load_data(real_data_dir)[2][0][0]
    Image.fromarray(255 - boot).resize((280, 280)).save(tmp_path / "my.png")
    parts = [part.split("```")[0] for part in published[1].split("```python\n")[1:]]
    short = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_STEPS_PER_EPOCH": "9"}
    command = [sys.executable, "-c", "\n".join(parts)]
    options = {"cwd": tmp_path, "env": {**os.environ, **short}, "text": True}
    assert "Ankle-boot" in subprocess.check_output(command, **options)
    assert (tmp_path / "my-model.keras").exists()
