"""How fast the experiment trains, against what people would use instead.

    python tests/benchmark.py [--epochs N] [--rounds N]

trains Tyler and Jackson, without L2, at the final setting and on the real data, in each
of the WAYS below. Every measurement has fresh processes, which train an epoch to warm
up and N more. The table shows medians of the seconds for an epoch and its validation
(where n trainings run side by side, each counts for 1/n of the time), their ratio to
ours, and a process's peak memory. It needs ten minutes and an otherwise idle machine.
"""

import argparse
import importlib
import itertools
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import joblib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
main = importlib.import_module("main-FMNIST")
util = main.util
CORES = joblib.cpu_count()


# Each function trains for setting.epochs epochs, calls epoch_ended after each, and gets
# (images, labels) as util.load_data gives them. Adam has Keras's own learning rate.
def ours(setting, train, validation, epoch_ended):
    """As a worker does it. An epoch ends with its validation."""
    sys.modules["sklearn"] = sys.modules["matplotlib"] = None
    epoch_function = main.epoch_function

    def reporting(model, step, batch_size):
        run_epoch = epoch_function(model, step, batch_size)

        def run_and_report(images, labels, order):
            values = run_epoch(images, labels, order)
            if step == model.test_step:
                float(values["loss"])  # waits until it is there
                epoch_ended()
            return values

        return run_and_report

    main.epoch_function = reporting
    main.train_trial(setting, 0, train, validation)


def keras_typical(setting, train, validation, epoch_ended):
    tf, _ = util.import_tensorflow()
    slices, size = tf.data.Dataset.from_tensor_slices, setting.batch_size
    train, validation = (
        slices(part).map(lambda x, y: (tf.cast(x, tf.float32) / 255, y))
        for part in (train, validation)
    )
    data = {"x": train.shuffle(10_000).batch(size)}
    fit(setting, epoch_ended, {}, **data, validation_data=validation.batch(size))


def keras_tuned(setting, train, validation, epoch_ended):
    x, x_val = train[0] / np.float32(255), validation[0] / np.float32(255)
    sizes = {"batch_size": setting.batch_size, "validation_batch_size": 1000}
    data = {"x": x, "y": train[1], "validation_data": (x_val, validation[1])}
    several = {"steps_per_execution": 125}  # of an epoch's 375
    fit(setting, epoch_ended, several, **data, **sizes)


def fit(setting, epoch_ended, compiling, **options):
    _, keras = util.import_tensorflow()
    model = main.build_network(setting)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"], **compiling)
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: epoch_ended())
    model.fit(epochs=setting.epochs, verbose=0, callbacks=[callback], **options)


def products_alone(setting, train, validation, epoch_ended):
    """In NumPy, an epoch's matrix products: each layer's outputs and, in training, the
    gradients of its weights and inputs. The values do not matter."""
    step, check = [], []  # two factors, and the array that receives their product
    for kernel in main.build_network(setting).get_weights()[::2]:
        weights = np.ones_like(kernel)
        gradients = np.ones((setting.batch_size, kernel.shape[1]), "float32")
        x = np.ones((setting.batch_size, kernel.shape[0]), "float32")
        x_val = np.ones((1000, kernel.shape[0]), "float32")
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


OURS = "this program, one training per core"
WAYS = {  # name: (function, how many processes side by side, which share the cores)
    OURS: (ours, CORES),
    "Keras tuned, one process per core": (keras_tuned, CORES),
    "Keras, a typical tf.data pipeline": (keras_typical, 1),
    "the matrix products alone, one process per core": (products_alone, CORES),
}


def measure(network, way, epochs):
    """Train in processes side by side; [(seconds per epoch, peak MiB) of each]."""
    count = WAYS[way][1]
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = os.environ | dict.fromkeys(threads, str(CORES // count))
    command = [sys.executable, __file__, "--train", network, way, f"--epochs={epochs}"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": env}
    running = [subprocess.Popen(command, text=True, **options) for _ in range(count)]
    return [tuple(map(float, x.communicate()[0].split())) for x in running]


def train_and_report(network, way, epochs):
    """What a process of `measure` does."""
    train_network, count = WAYS[way]
    for pool in ("INTRAOP", "INTEROP"):  # util has set them to 1
        os.environ[f"TF_NUM_{pool}_THREADS"] = str(CORES // count)
    setting = main.Setting(network, False, **{**main.FINAL, "epochs": 1 + epochs})
    train, validation, _ = util.load_data()
    times = []
    train_network(setting, train, validation, lambda: times.append(time.perf_counter()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(np.median(np.diff(times)), peak)


def benchmark(epochs, rounds):
    reports = {turn: [] for turn in itertools.product(("tyler", "jackson"), WAYS)}
    for _, turn in itertools.product(range(rounds), reports):
        reports[turn] += measure(*turn, epochs)
    print(f"An epoch on {CORES} cores:{'':37} seconds  ratio  peak MiB")
    costs = {}
    for (network, way), report in reports.items():
        seconds, peaks = zip(*report)
        costs[network, way] = median(seconds) / WAYS[way][1]
        ratio = costs[network, way] / costs[network, OURS]
        numbers = f"{costs[network, way]:7.3f} {ratio:6.2f} {max(peaks):9.0f}"
        print(f"{network.title():8} {way:47} {numbers}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", metavar="N", type=int, default=5, help="(5)")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="(3)")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_and_report(*options.train, options.epochs)
    else:
        benchmark(options.epochs, options.rounds)
