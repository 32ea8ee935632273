"""How fast the experiment trains, against what people would use instead.

    python tests/benchmark.py [--epochs N] [--rounds N]

trains Tyler and Jackson, without L2, at the final setting and on the real data, in each
of the WAYS below. Every measurement has fresh processes. They train an epoch to warm up,
which is not counted, wait for each other, and train N more. All ways have their turn in
every round. The table shows medians, over epochs and rounds, of the seconds for an epoch
and its validation (where n trials run side by side, each counts for 1/n of the time),
their ratio to ours, and the peak memory of a process.

It needs ten minutes, an otherwise idle machine and the four models in models/.
"""

import argparse
import contextlib
import importlib
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import joblib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
main = importlib.import_module("main-FMNIST")
util = main.util

CORES = joblib.cpu_count()
HIDDEN_UNITS = {"tyler": (128, 128, 128, 128, 128), "jackson": (512, 256, 128, 64)}


# ------------------------------------------------------------------ the ways to train
# Each function trains for setting.epochs epochs, and calls epoch_ended after each.
# `train` and `validation` are (images, labels) as util.load_data gives them. All use
# Adam; the learning rate of 0.001 is the default of Keras and of scikit-learn.


def ours(setting, train, validation, epoch_ended):
    sys.modules["sklearn"] = sys.modules["matplotlib"] = None  # as main's workers do
    main.train_trial(main.Trial(setting, 0), train, validation, epoch_ended)


def keras_usual(setting, train, validation, epoch_ended):
    import tensorflow as tf

    def scale(image, label):
        return tf.cast(image, tf.float32) / 255, label

    train = tf.data.Dataset.from_tensor_slices(train).map(scale)
    train = train.shuffle(10_000).batch(setting.batch_size)
    validation = tf.data.Dataset.from_tensor_slices(validation).map(scale)
    validation = validation.batch(setting.batch_size)
    fit_keras(setting, epoch_ended, train, validation_data=validation)


def keras_best(setting, train, validation, epoch_ended):
    x, x_val = train[0] / np.float32(255), validation[0] / np.float32(255)
    options = {"batch_size": setting.batch_size, "validation_batch_size": 1000}
    options["validation_data"] = (x_val, validation[1])
    options["steps_per_execution"] = 125  # of an epoch's 375
    fit_keras(setting, epoch_ended, x, train[1], **options)


def fit_keras(setting, epoch_ended, *data, steps_per_execution=1, **options):
    import keras

    networks = importlib.import_module("model-FMNIST")
    build = getattr(networks, f"build_{setting.architecture}")
    model = build(dropout_rate=setting.dropout_rate)
    compiling = {"metrics": ["accuracy"], "steps_per_execution": steps_per_execution}
    model.compile("adam", "categorical_crossentropy", **compiling)
    options["callbacks"] = [keras.callbacks.LambdaCallback(on_epoch_end=epoch_ended)]
    model.fit(*data, epochs=setting.epochs, verbose=0, **options)


def scikit_learn(setting, train, validation, epoch_ended):
    """It knows no dropout, and here it validates nothing."""
    from sklearn.neural_network import MLPClassifier

    x, y = train[0].reshape(-1, 784) / np.float32(255), train[1].argmax(1)
    units = HIDDEN_UNITS[setting.architecture]
    model = MLPClassifier(units, alpha=0, batch_size=setting.batch_size)
    for _ in range(setting.epochs):
        model.partial_fit(x, y, classes=range(10))  # an epoch
        epoch_ended()


def floor(setting, train, validation, epoch_ended):
    """In NumPy, an epoch's matrix products alone: each layer's outputs and, in training,
    the gradients of its weights and inputs. The values do not matter."""
    step, check = [], []  # two factors, and the array that receives their product
    units = (784, *HIDDEN_UNITS[setting.architecture], 10)
    for n_in, n_out in itertools.pairwise(units):
        weights = np.ones((n_in, n_out), "float32")
        gradients = np.ones((setting.batch_size, n_out), "float32")
        x = np.ones((setting.batch_size, n_in), "float32")
        x_val = np.ones((1000, n_in), "float32")
        for a, b in ((x, weights), (x.T, gradients), (gradients, weights.T)):
            step.append((a, b, a @ b))
        check.append((x_val, weights, x_val @ weights))
    del step[2]  # nobody needs the gradients of the images
    epoch = step * (len(train[0]) // setting.batch_size)
    epoch += check * (len(validation[0]) // 1000)
    for _ in range(setting.epochs):
        for a, b, product in epoch:
            np.matmul(a, b, out=product)
        epoch_ended()


OURS, USUAL = "ours, one trial per core", "Keras, a typical tf.data pipeline"
WAYS = {  # name: (function, how many processes side by side, which share the cores)
    OURS: (ours, CORES),
    "ours, one trial alone": (ours, 1),
    USUAL: (keras_usual, 1),
    "Keras, tuned": (keras_best, 1),
    "Keras, tuned, one per core": (keras_best, CORES),
    "scikit-learn": (scikit_learn, 1),
    "floor, one per core": (floor, CORES),
}


# ---------------------------------------------------------------------- measuring them


@contextlib.contextmanager
def processes(count, *command, env=None):
    """Run Python in processes side by side. Ctrl-C reaches us only, and we end them."""
    command = [sys.executable, *command]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pipes |= {"stderr": subprocess.DEVNULL, "start_new_session": True}
    running = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen(command, env=env, **pipes))
        yield running
        if any(process.wait() for process in running):
            raise subprocess.CalledProcessError(1, command)
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.read()  # until workers that it started have ended, too


def measure(architecture, way, epochs):
    """Train in processes side by side; [(seconds per epoch, peak MiB) of each]."""
    count = WAYS[way][1]
    env = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    for library in ("TF_NUM_INTRAOP", "TF_NUM_INTEROP", "OMP_NUM", "OPENBLAS_NUM"):
        env[f"{library}_THREADS"] = str(CORES // count)
    command = (__file__, "--train", architecture, way, "--epochs", str(epochs))
    with processes(count, *command, env=env) as running:
        for process in running:
            process.stdout.readline()  # "warm"
        for process in running:
            process.stdin.close()  # go on
        lines = [process.stdout.readline() for process in running]
    return [tuple(map(float, line.split())) for line in lines]


def train_and_report(architecture, way, epochs):
    """What a process of `measure` does."""
    final = main.final_settings(main.parse_options([]))
    setting = next(one for one in final if one.architecture == architecture)
    setting = setting._replace(epochs=1 + epochs)
    train, validation, _ = util.load_data()
    times = []

    def epoch_ended(*_):
        if not times:
            print("warm", flush=True)
            sys.stdin.read()  # wait for those side by side
        times.append(time.perf_counter())

    WAYS[way][0](setting, train, validation, epoch_ended)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(np.median(np.diff(times)), peak, flush=True)


def run_main(*arguments):
    """Run main-FMNIST.py; [(seconds since its start, line that it prints then)]."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = (ROOT / "main-FMNIST.py", "--output-dir", folder, *arguments)
        with processes(1, *command) as [process]:
            return [(time.perf_counter() - start, line) for line in process.stdout]


def benchmark(epochs, rounds):
    reports = {turn: [] for turn in itertools.product(HIDDEN_UNITS, WAYS)}
    one_step, evaluate = [], []
    models = [f"{ROOT}/models/model_{n}_{i}.h5" for n in HIDDEN_UNITS for i in (0, 1)]
    for number in range(rounds):
        print(f"Round {number + 1} of {rounds}", flush=True)
        # Here a trial is one step. Its line comes when it is validated and saved.
        lines = run_main("--quick", "--no-sweep", "--epochs=1", "--batch-size=4800")
        one_step.append(next(seconds for seconds, line in lines if "4800" in line))
        evaluate.append(run_main("--evaluate", *models)[-1][0])
        for turn, report in reports.items():
            report += measure(*turn, epochs)
    print(f"{CORES} cores, {util.library_versions()}")
    print("An epoch of a trial:                     seconds  ratio  peak MiB")
    costs = {}
    for (name, way), report in reports.items():
        seconds, peaks = zip(*report)
        costs[name, way] = median(seconds) / WAYS[way][1]
        ratio = costs[name, way] / costs[name, OURS]
        numbers = f"{costs[name, way]:7.3f} {ratio:6.2f} {max(peaks):9.0f}"
        print(f"{name.title():8} {way:31} {numbers}")
    print(f"The first training step ends {median(one_step):.1f} s after the start.")
    print(f"--evaluate of the four models takes {median(evaluate):.1f} s.")
    # The experiment's epochs, as if all batches were of 128. The usual way trains the
    # final models, and each setting of each panel by itself.
    final = main.final_settings(main.parse_options([]))
    points = main.study_points(final)
    usual = final + [point.setting._replace(epochs=point.epoch) for point in points]
    once = {*final, *(point.setting for point in points)}
    for way, settings in ((USUAL, usual), (OURS, once)):
        seconds = sum(s.epochs * costs[s.architecture, way] for s in settings)
        print(
            f"{way}: {len(settings)} trainings, {seconds / 60:.1f} minutes (estimate)"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", metavar="N", type=int, default=5, help="(5)")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="(3)")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.train:
            train_and_report(*options.train, options.epochs)
        else:
            benchmark(options.epochs, options.rounds)
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, subprocess.CalledProcessError, util.InputError) as error:
        sys.exit(f"benchmark.py: {error}")
