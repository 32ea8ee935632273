"""The command line end to end, and the training behind it."""

import contextlib
import csv
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import synthetic_images, write_idx

SCRIPT = Path(__file__).resolve().parent.parent / "main-FMNIST.py"
MODELS = [f"model_{name}_{flag}.h5" for name in ("tyler", "jackson") for flag in (0, 1)]
PLOTS = [
    "hyperparameters_tyler.png",
    "accuracy_tyler.png",
    "accuracy_jackson.png",
    "confusion_matrix_tyler_0.png",
    "confusion_matrix_tyler_1.png",
    "confusion_matrix_jackson_0.png",
    "confusion_matrix_jackson_1.png",
    "architecture_tyler.png",
    "architecture_jackson.png",
    "predictions.png",
]
STUDY = ("--epochs", "3", "--batch-size", "64", "--seed", "7")
TWELVE = (*STUDY, "--no-sweep", "--repeats", "3")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, util):
    """A small data set: 1,200 images to train on, 300 to validate, 200 to test."""
    folder = tmp_path_factory.mktemp("data")
    contents = *synthetic_images(1500), *synthetic_images(200)
    for name, array in zip(util.DATA_FILES, contents):
        write_idx(folder / name, array)
    return folder


def heed_ctrl_c():
    """In the child: what runs in a shell's background has been told to ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    options.setdefault("preexec_fn", heed_ctrl_c)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes, **options)


def run(*arguments, status=0, **options):
    """Run the script to its end; (stdout, stderr)."""
    process = start(*arguments, **options)
    output = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def one_line(error):
    """The single line that stderr should hold."""
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    return lines[0]


def weights(path):
    """Everything a model file holds, {name: array}: weights, optimizer, history."""
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return arrays


def assert_same_outcome(ours, theirs):
    """The same weights to the last bit, and the same tables to the last byte."""
    for name in MODELS:
        one, other = weights(ours / "models" / name), weights(theirs / "models" / name)
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=f"{name} {key}")
    for name in ("history.csv", "results.csv"):
        mine = (ours / "models" / name).read_bytes()
        assert mine == (theirs / "models" / name).read_bytes(), name


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def group_members(group):
    """The processes of a session that are still there (zombies aside)."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def assert_nothing_is_left_of(process):
    """No worker outlives the main process by more than moments."""
    deadline = time.monotonic() + 3
    while group_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert group_members(process.pid) == []


def wait_for_kept(folder, count, process, timeout=120):
    """Wait until a run has kept so many trials, or has ended."""
    deadline = time.monotonic() + timeout
    while len(list(folder.glob(".trials/*.h5"))) < count and process.poll() is None:
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


# ------------------------------------------------------------------- a whole experiment


@pytest.fixture(scope="session")
def whole(tmp_path_factory, data_dir):
    """An undisturbed run of the whole experiment, two trials at a time."""
    folder = tmp_path_factory.mktemp("whole")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    output = run(
        *STUDY, "--data-dir", data_dir, "--output-dir", folder, "--jobs", 2,
        cwd=elsewhere,
    )  # fmt: skip
    assert not list(elsewhere.iterdir())
    return folder, *output


@pytest.fixture(scope="session")
def alone(tmp_path_factory, data_dir):
    """The outcome of a smaller run, of TWELVE trials, that was left alone."""
    folder = tmp_path_factory.mktemp("alone")
    run(*TWELVE, "--data-dir", data_dir, "--output-dir", folder)
    return folder


def test_the_terminal_is_clean_and_tells_the_story(whole):
    folder, output, error = whole
    assert error == ""
    lines = output.splitlines()
    assert lines[0] == "28 trials, of which 0 are kept from before"
    assert sum(line.startswith(("Tyler", "Jackson")) for line in lines) == 28 + 1
    assert max(map(len, lines[:-1])) <= 80
    assert "model_jackson_1" in output and "about 0.88" in output
    assert str(folder / "models") in lines[-1]


def test_every_file_is_there_and_nothing_else(whole):
    folder = whole[0]
    assert sorted(p.name for p in folder.iterdir()) == ["models", "plots"]
    tables = ["history.csv", "results.csv"]
    assert sorted(p.name for p in (folder / "models").iterdir()) == sorted(
        MODELS + tables
    )
    assert sorted(p.name for p in (folder / "plots").iterdir()) == sorted(PLOTS)


def test_history_has_a_row_per_trial_and_epoch(whole):
    history = rows(whole[0] / "models" / "history.csv")
    fields = ("architecture", "use_regularizer", "dropout_rate", "learning_rate")
    trials = [tuple(row[f] for f in (*fields, "batch_size", "seed")) for row in history]
    assert len(history) == 28 * 3
    assert len(set(trials)) == 28
    assert {row["epoch"] for row in history} == {"1", "2", "3"}
    assert all(0 <= float(row["val_accuracy"]) <= 1 for row in history)


def test_results_are_what_plain_keras_measures(whole, util, main, data_dir):
    """In the table, and for a model that needs nothing of ours."""
    import keras

    *_, (x_test, y_test) = util.load_data(data_dir)
    for row in rows(whole[0] / "models" / "results.csv"):
        model = keras.models.load_model(whole[0] / "models" / f"{row['model']}.h5")
        loss, accuracy = model.evaluate(x_test / 255, y_test, verbose=0)
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(row["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
        predicted = model.predict(x_test / 255, verbose=0).argmax(1)
        recall = [
            np.mean(predicted[y_test[:, c] == 1] == c)
            for c in range(10)
            if y_test[:, c].any()
        ]
        assert float(row["recall"]) == pytest.approx(np.mean(recall), abs=1e-6)


def test_saved_models_go_on_training_where_they_stopped(main, util, data_dir, tmp_path):
    """Plain Keras trains a loaded model on, with its optimizer's state if given it."""
    import keras

    train, validation, _ = util.load_data(data_dir)
    scaled, labels = train[0] / np.float32(255), train[1]
    trial = main.Trial("tyler", True, 0.0, 0.001, 100, 2, 0)
    path = tmp_path / "model.h5"
    path.write_bytes(main.train_trial(trial, train, validation))

    fresh, restored = keras.models.load_model(path), keras.models.load_model(path)
    fresh.fit(scaled, labels, verbose=0)
    restored.optimizer.build(restored.trainable_variables)
    with h5py.File(path) as file:
        state = file["optimizer_state"]
        names = state.attrs["weight_names"]
        restored.optimizer.set_weights([state[name][()] for name in names])
    assert int(restored.optimizer.iterations) == 2 * 12

    unbroken = main.build_model(trial)
    order = np.random.default_rng(trial.seed)
    train_epoch, _ = main.epoch_functions(unbroken, 100, train, validation)
    for _ in range(2):
        train_epoch(order.permutation(len(scaled)).astype("int32"))
    for model in (restored, unbroken):
        model.fit(scaled, labels, 100, shuffle=False, verbose=0)
    for one, other in zip(restored.weights, unbroken.weights):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_one_worker_gives_the_same_as_two(whole, tmp_path, data_dir):
    run(
        *STUDY, "--no-sweep", "--data-dir", data_dir, "--output-dir", tmp_path,
        "--jobs", 1,
    )  # fmt: skip
    for name in MODELS:
        one = weights(tmp_path / "models" / name)
        other = weights(whole[0] / "models" / name)
        assert all(np.array_equal(one[key], other[key]) for key in other)


def test_quick_takes_every_stage_and_repeats_and_grids(tmp_path, data_dir):
    output, error = run(
        "--quick", "--no-sweep", "--data-dir", data_dir, "--output-dir", tmp_path,
        "--repeats", 2, "--epochs", 2, "--grid", "batch_size=64,256",
    )  # fmt: skip
    assert error == ""
    results = rows(tmp_path / "models" / "results.csv")
    names = [name.removesuffix(".h5") for name in MODELS]
    names += ["model_tyler_best", "model_jackson_best"]
    assert [row["model"] for row in results] == [n for n in names for _ in range(2)]
    assert [row["seed"] for row in results] == ["0", "1"] * 6
    assert "±" in output
    history = rows(tmp_path / "models" / "history.csv")
    assert len(history) == (4 + 2 * 2) * 2 * 2  # trials x seeds x epochs
    for row in results[-4:]:
        means = {}
        for batch_size in ("64", "256"):
            last = [
                float(other["val_accuracy"])
                for other in history
                if other["epoch"] == "2"
                and other["architecture"] == row["architecture"]
                and other["use_regularizer"] == "False"
                and other["batch_size"] == batch_size
            ]
            means[batch_size] = sum(last) / 2
        assert means[row["batch_size"]] == max(means.values())


# ---------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("architecture", ["tyler", "jackson"])
@pytest.mark.parametrize("flag", [False, True])
def test_training_does_the_same_arithmetic_as_fit(
    main, util, data_dir, architecture, flag
):
    """Full batches without dropout leave nothing to chance: weights agree."""
    train, validation, _ = util.load_data(data_dir)
    count = len(train[0])
    trial = main.Trial(architecture, flag, 0.0, 0.001, count, 4, 3)
    ours, theirs = main.build_model(trial), main.build_model(trial)
    train_epoch, validate = main.epoch_functions(ours, count, train, validation)
    history = [
        (*train_epoch(np.arange(count, dtype="int32")), *validate())
        for _ in range(trial.epochs)
    ]
    fit = theirs.fit(
        train[0] / np.float32(255), train[1], count, trial.epochs, verbose=0,
        validation_data=(validation[0] / np.float32(255), validation[1]),
    )  # fmt: skip
    for one, other in zip(ours.weights, theirs.weights):
        difference = np.abs(one.numpy() - other.numpy())
        # Adam divides by the gradient's size: where that is nearly 0, rounding shows.
        assert difference.mean() < 1e-5
        assert difference.max() < trial.learning_rate
    for i, metric in enumerate(util.METRICS):
        expected = fit.history[metric]
        np.testing.assert_allclose([e[i] for e in history], expected, rtol=1e-3)
    assert int(ours.optimizer.iterations) == int(theirs.optimizer.iterations)


def test_a_last_smaller_batch_is_trained_on_too(main, util, data_dir):
    train, validation, _ = util.load_data(data_dir)
    trial = main.Trial("tyler", False, 0.0, 0.001, 500, 1, 0)
    ours, theirs = main.build_model(trial), main.build_model(trial)
    train_epoch, _ = main.epoch_functions(ours, 500, train, validation)
    loss, _ = train_epoch(np.arange(len(train[0]), dtype="int32"))
    scaled = train[0] / np.float32(255)
    fit = theirs.fit(scaled, train[1], 500, verbose=0, shuffle=False)
    assert int(ours.optimizer.iterations) == 3  # 500 + 500 + 200
    assert float(loss) == pytest.approx(fit.history["loss"][0], rel=1e-3)


def test_a_short_training_on_the_real_data_works(main, util, real_data_dir, tmp_path):
    """Two epochs of Tyler: far beyond what a broken pipeline would reach."""
    train, validation, test = util.load_data(real_data_dir)
    trial = main.Trial("tyler", False, 0.3, 0.001, 128, 2, 0)
    path = tmp_path / "model.h5"
    path.write_bytes(main.train_trial(trial, train, validation))
    history = util.read_history(path)
    assert 0.84 < history["val_accuracy"][-1] < 0.90
    _, scores, _ = main.test_model(path, test)
    assert 0.83 < scores["accuracy"] < 0.89


def test_a_trial_leaves_nothing_in_its_worker(main, util, data_dir, monkeypatch):
    """A model and its graphs refer to each other and would pile up, trial after trial."""
    train, validation, _ = util.load_data(data_dir)
    trial = main.Trial("tyler", False, 0.3, 0.001, 400, 1, 0)
    build_model, models = main.build_model, []

    def remember(trial):
        model = build_model(trial)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(main, "build_model", remember)
    gc.disable()  # so that it is train_trial that collects, not chance
    try:
        main.train_trial(trial, train, validation)
        main.train_trial(trial, train, validation)
    finally:
        gc.enable()
    assert models[0]() is None


def test_a_diverging_trial_ends_early_and_stops_no_other(tmp_path, data_dir):
    output, error = run(
        "--no-sweep", "--epochs", 3, "--learning-rate", "1e11", "--batch-size", 64,
        "--data-dir", data_dir, "--output-dir", tmp_path,
    )  # fmt: skip
    assert error == ""
    assert output.count("diverged") >= 2
    history = rows(tmp_path / "models" / "history.csv")
    assert len(history) < 4 * 3
    assert len({row["architecture"] + row["use_regularizer"] for row in history}) == 4


# --------------------------------------------------------------------- interrupted runs


def test_a_run_killed_again_and_again_ends_like_one_left_alone(
    alone, tmp_path, data_dir
):
    arguments = (*TWELVE, "--data-dir", data_dir, "--output-dir", tmp_path, "--jobs", 2)
    luck = random.Random(2)
    for kept in sorted(luck.sample(range(1, 11), 3)):
        process = start(*arguments)
        wait_for_kept(tmp_path, kept, process)
        time.sleep(luck.random() / 4)
        process.kill()
        process.communicate()
        for path in tmp_path.glob("models/*.h5"):
            weights(path)
        assert_nothing_is_left_of(process)
    output, error = run(*arguments)
    assert error == ""
    assert "of which 0" not in output.splitlines()[0]
    assert_same_outcome(tmp_path, alone)
    assert not (tmp_path / ".trials").exists()


def test_killed_while_it_publishes_it_continues(alone, tmp_path, data_dir):
    """The moment when files of models/ change is short, so it is hit on purpose."""
    arguments = (*TWELVE, "--data-dir", data_dir, "--output-dir", tmp_path)
    process = start(*arguments)
    while not (tmp_path / "models").exists() and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    for path in tmp_path.glob("models/*.h5"):
        weights(path)
    run(*arguments)
    assert_same_outcome(tmp_path, alone)


def test_ctrl_c_says_what_is_kept_and_leaves_no_process(alone, tmp_path, data_dir):
    arguments = (*TWELVE, "--data-dir", data_dir, "--output-dir", tmp_path)
    process = start(*arguments)
    wait_for_kept(tmp_path, 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to every process
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "trials kept; run it again to go on" in one_line(error)
    assert_nothing_is_left_of(process)
    assert not (tmp_path / "models").exists()
    output, _ = run(*arguments)
    assert int(output.split("of which ")[1].split()[0]) >= 3
    assert_same_outcome(tmp_path, alone)


@pytest.mark.parametrize("delay", [0.05, 0.5, 1.5])
def test_ctrl_c_at_the_start_shows_no_traceback(tmp_path, data_dir, delay):
    process = start("--data-dir", data_dir, "--output-dir", tmp_path)
    while len(group_members(process.pid)) < 1:
        time.sleep(0.01)
    time.sleep(0.35 + delay)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    one_line(error)
    assert_nothing_is_left_of(process)


def test_a_worker_that_dies_is_named_and_its_trial_goes_to_another(
    alone, tmp_path, data_dir
):
    process = start(*TWELVE, "--data-dir", data_dir, "--output-dir", tmp_path)
    wait_for_kept(tmp_path, 2, process)
    workers = [pid for pid in group_members(process.pid) if pid != process.pid]
    command = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in workers}
    workers = [pid for pid in workers if "spawn_main" in command[pid]]
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    died = next(line for line in output.splitlines() if "died" in line)
    assert "Tyler" in died or "Jackson" in died
    assert_same_outcome(tmp_path, alone)


def test_a_full_disk_is_one_line_and_the_next_run_continues(alone, tmp_path, data_dir):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))

    arguments = (*TWELVE, "--data-dir", data_dir, "--output-dir", tmp_path)
    _, error = run(*arguments, "--jobs", 1, status=2, preexec_fn=small_disk)
    one_line(error)
    assert not (tmp_path / "models").exists()
    run(*arguments)
    assert_same_outcome(tmp_path, alone)


def test_a_second_run_into_the_same_folder_is_refused(tmp_path, data_dir):
    arguments = ("--data-dir", data_dir, "--output-dir", tmp_path)
    process = start(*arguments)
    while not (tmp_path / ".trials").exists():
        time.sleep(0.02)
    _, error = run(*arguments, status=2)
    assert "another run" in one_line(error)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    with_lock_left = run("--no-sweep", "--epochs", 1, "--jobs", 1, *arguments)
    assert with_lock_left[1] == ""


def test_kept_trials_count_only_for_the_same_data(tmp_path, data_dir, main, util):
    trial = main.Trial("tyler", False, 0.3, 0.001, 64, 1, 0)
    (images, labels), *_ = util.load_data(data_dir)
    changed = images.copy()
    changed[-1, -1, -1] ^= 1
    kept = util.kept_file(tmp_path, trial, util.digest(images, labels))
    assert kept == util.kept_file(tmp_path, trial, util.digest(images.copy(), labels))
    assert kept != util.kept_file(tmp_path, trial, util.digest(changed, labels))
    other = trial._replace(seed=1)
    assert kept != util.kept_file(tmp_path, other, util.digest(images, labels))


def test_fresh_throws_kept_trials_away(tmp_path, data_dir):
    (tmp_path / ".trials").mkdir()
    (tmp_path / ".trials" / "tyler-0.h5").write_bytes(b"")
    arguments = ("--no-sweep", "--epochs", 1, "--data-dir", data_dir)
    run(*arguments, "--output-dir", tmp_path, "--fresh")
    assert not (tmp_path / ".trials").exists()


# -------------------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    "arguments",
    [
        "--epochs 0", "--epochs 1.5", "--dropout-rate 1", "--dropout-rate -0.1",
        "--dropout-rate nan", "--batch-size -3", "--batch-size 0", "--learning-rate 0",
        "--learning-rate nan", "--learning-rate inf", "--learning-rate -1", "--jobs 0",
        "--repeats 0", "--seed -1", "--seed x", "--grid depth=3", "--grid epochs=0",
        "--grid epochs", "--grid learning_rate=0.1,", "--nonsense", "--data-dir",
    ],
)  # fmt: skip
def test_a_wrong_option_is_told_so_in_one_line(main, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments.split())
    assert stop.value.code == 2
    line = one_line(capsys.readouterr().err)
    assert arguments.split()[0] in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch-size", "1201"], "--batch-size 1201"),
        (["--data-dir", "/no/such/folder"], "/no/such/folder"),
        (["--output-dir", "/proc/nowhere"], "/proc/nowhere"),
        (["--evaluate", "/no/such/model.h5"], "/no/such/model.h5"),
        (["--evaluate", __file__], __file__),
    ],
)
def test_bad_input_is_named_in_one_line(
    main, capsys, tmp_path, data_dir, arguments, named
):
    with pytest.raises(SystemExit) as stop:
        base = ["--data-dir", str(data_dir), "--output-dir", str(tmp_path)]
        main.main([*base, *arguments])
    assert stop.value.code == 2
    assert named in one_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_tensorflow():
    code = f"""
import importlib, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
try:
    importlib.import_module("main-FMNIST").main(["--help"])
except SystemExit:
    print([name for name in ("tensorflow", "sklearn", "matplotlib", "h5py")
           if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert "--evaluate" in output


# ---------------------------------------------------------------------------- evaluation


def test_evaluate_shows_each_model_and_draws_its_matrix(whole, tmp_path, data_dir):
    paths = [whole[0] / "models" / name for name in MODELS[1:3]]
    output, error = run(
        "--evaluate", *paths, "--data-dir", data_dir, "--output-dir", tmp_path
    )
    assert error == ""
    results = {row["model"]: row for row in rows(whole[0] / "models" / "results.csv")}
    for path in paths:
        accuracy = float(results[path.stem]["accuracy"])
        assert f"accuracy {accuracy:.4f}" in output
    assert "Dense, relu, L2 0.001" in output and "Dropout 0.3" in output
    assert "Ankle boot" in output
    drawn = sorted(path.name for path in tmp_path.glob("*/*"))
    names = ("model_jackson_0", "model_tyler_1")
    folder = "_".join(paths[0].parent.parts).strip("/_")
    assert drawn == [f"confusion_matrix_{folder}_{name}.png" for name in names]


def test_evaluate_takes_the_four_models_by_default(whole, data_dir):
    output, _ = run("--evaluate", "--data-dir", data_dir, "--output-dir", whole[0])
    assert all(name in output for name in MODELS)


# ------------------------------------------------------------------------------ cluster


@pytest.fixture
def cluster(tmp_path):
    """A real Dask scheduler on the loopback address and a function that adds workers."""
    processes, folder = [], tmp_path / "workers"  # where none of our files are
    folder.mkdir()

    def launch(*arguments):
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0]]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(
            [*command, *arguments[1:]], cwd=folder, start_new_session=True, **silent
        )
        processes.append(process)
        return process

    contact = tmp_path / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    scheduler = launch("scheduler", *options, "--scheduler-file", str(contact))
    deadline = time.monotonic() + 30
    while not contact.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    address = json.loads(contact.read_text())["address"]

    def add_worker(threads):
        options = ("--no-dashboard", "--no-nanny", "--nthreads", str(threads))
        return launch("worker", address, *options)

    yield address, scheduler, add_worker
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_cluster_gives_the_same_even_if_it_loses_a_worker(
    alone, tmp_path, data_dir, cluster
):
    address, _, add_worker = cluster
    _, first = add_worker(2), add_worker(1)
    output = tmp_path / "output"
    process = start(
        *TWELVE, "--data-dir", data_dir, "--output-dir", output, "--cluster", address
    )
    wait_for_kept(output, 2, process)
    os.killpg(first.pid, signal.SIGKILL)
    _, error = process.communicate(timeout=200)
    assert (process.returncode, error) == (0, "")
    assert_same_outcome(output, alone)


def test_a_cluster_that_fails_is_told_in_one_line(tmp_path, data_dir, cluster):
    address, scheduler, add_worker = cluster
    output = tmp_path / "output"
    arguments = ("--no-sweep", "--epochs", 60, "--data-dir", data_dir)
    arguments = (*arguments, "--output-dir", output, "--cluster", address)
    _, error = run(*arguments, status=2)  # it has no workers yet
    assert "0/1 workers" in one_line(error)
    add_worker(1)
    process = start(*arguments)
    wait_for_kept(output, 1, process)
    os.killpg(scheduler.pid, signal.SIGKILL)
    started = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - started < 15
    assert process.returncode == 2
    assert "scheduler is lost" in one_line(error)
    assert len(list(output.glob(".trials/*.h5"))) >= 1
    _, error = run(*arguments, status=2)  # and now nobody answers
    assert address in one_line(error)


def test_a_cluster_with_other_versions_is_refused(
    tmp_path, data_dir, cluster, main, util, monkeypatch, capsys
):
    address, _, add_worker = cluster
    add_worker(1)
    monkeypatch.setattr(util, "library_versions", lambda: {"pid": os.getpid()})
    with pytest.raises(SystemExit):
        main.main(
            f"--no-sweep --data-dir {data_dir} --output-dir {tmp_path / 'output'} "
            f"--cluster {address}".split()
        )
    assert "versions differ" in one_line(capsys.readouterr().err)


# ------------------------------------------------------------- what the repository holds

PROJECT = SCRIPT.parent
LABELS = {
    "model_tyler_0": "Tyler",
    "model_tyler_1": "Tyler + L2",
    "model_jackson_0": "Jackson",
    "model_jackson_1": "Jackson + L2",
    "model_tyler_best": "Tyler, best setting",
    "model_jackson_best": "Jackson, best setting",
}


def mean_and_deviation(values):
    values = [float(value) for value in values]
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def results_table():
    """README's table of the models, out of results.csv."""
    results = rows(PROJECT / "models" / "results.csv")
    lines = [
        "| model | accuracy | precision | recall | F1 | loss |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, label in LABELS.items():
        seeds = [row for row in results if row["model"] == name]
        scores = ("accuracy", "precision", "recall", "f1", "loss")
        cells = [mean_and_deviation(row[score] for row in seeds) for score in scores]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def study_table():
    """README's table of the study, out of history.csv."""
    history = rows(PROJECT / "models" / "history.csv")
    centre = {"dropout_rate": 0.3, "learning_rate": 0.001, "batch_size": 128}
    grids = {
        "dropout_rate": (0.1, 0.2, 0.3, 0.4, 0.5),
        "learning_rate": (0.0001, 0.0003, 0.001, 0.003, 0.01),
        "batch_size": (32, 64, 128, 256, 512),
        "epochs": (10, 20, 30, 40, 50),
    }
    lines = [
        "| hyperparameter | value | without L2 | with L2 |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in grids.items():
        for value in values:
            setting = {**centre, "epoch": 50, "epochs": 50, name: value}
            if name == "epochs":
                setting |= {"epoch": value, "epochs": 50}
            cells = [
                mean_and_deviation(
                    row["val_accuracy"]
                    for row in history
                    if row["architecture"] == "tyler"
                    and row["use_regularizer"] == flag
                    and all(float(row[key]) == setting[key] for key in setting)
                )
                for flag in ("False", "True")
            ]
            lines.append(
                f"| {name.replace('_', ' ')} | {value:g} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


@pytest.mark.parametrize("table", [results_table, study_table])
def test_readme_has_the_figures_of_the_published_tables(table):
    assert table() in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize("name", LABELS)
def test_published_models_score_what_the_table_says(main, util, real_data_dir, name):
    *_, test = util.load_data(real_data_dir)
    _, scores, _ = main.test_model(PROJECT / "models" / f"{name}.h5", test)
    results = rows(PROJECT / "models" / "results.csv")
    row = next(row for row in results if row["model"] == name)  # the first seed's
    assert scores["accuracy"] == pytest.approx(float(row["accuracy"]), abs=2e-4)
    for score in ("loss", "precision", "recall", "f1"):
        assert scores[score] == pytest.approx(float(row[score]), abs=1e-3)


def test_readme_python_code_runs_as_it_stands(real_data_dir, tmp_path, util):
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True)
    for name in util.DATA_FILES:
        (cache / name).symlink_to(real_data_dir / name)
    (tmp_path / "models").symlink_to(PROJECT / "models")
    parts = (PROJECT / "README.md").read_text().split("```python\n")[1:]
    code = "\n".join(part.split("```")[0] for part in parts)
    environment = {**os.environ, "KERAS_HOME": str(tmp_path / "keras")}
    command = [sys.executable, "-c", code]
    output = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    assert "class 9" in output.stdout  # the first test image is an ankle boot
