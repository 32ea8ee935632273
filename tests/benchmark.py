"""How fast the experiment trains, against what people would use instead.

    python tests/benchmark.py [--epochs N] [--rounds N] [--json FILE]

trains Tyler and Jackson, without L2, at the final setting (dropout 0.3, batches of 128,
learning rate 0.001) on the real training data, in each of these ways in turn:

- ours as main-FMNIST.py runs it, a trial per core side by side; and one trial alone;
- Keras as most people write it: tf.data's map, shuffle, batch, then model.fit;
- Keras at its best: arrays in memory and many steps per call; one process with all
  cores, and a single-threaded process per core;
- scikit-learn's MLPClassifier, which has no dropout and here validates nothing;
- the floor: the matrix products of the same epoch and nothing else, in NumPy.

Each way trains in fresh processes, for one epoch more than is counted, so that imports,
tracing and the like stay out. All have their turn in every round. Shown are medians, over
rounds and epochs, of the seconds per epoch (training and validation) and trial: where n
trials run side by side, a trial counts for 1/n of the time. It takes ten minutes, and the
machine for itself.
"""

import argparse
import functools
import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from rich import box
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
main = importlib.import_module("main-FMNIST")
util = main.util
show = main.console.print

LAYERS = {  # values per image, units of the hidden layers, classes
    "tyler": (784, 128, 128, 128, 128, 128, 10),
    "jackson": (784, 512, 256, 128, 64, 10),
}
DROPOUT_RATE, LEARNING_RATE, BATCH_SIZE = 0.3, 0.001, 128


# ------------------------------------------------------------------ the ways to train
# Each takes a network's name, the (training, validation) data as util.load_data gives
# them and the number of epochs, and calls `mark` when all is set up, after the epoch
# for warming up, and after each further epoch.


def ours(network, data, epochs, mark):
    """A worker's steps, as in main.train_trial."""
    main.start_worker(*data)
    train, validation = data
    setting = DROPOUT_RATE, LEARNING_RATE, BATCH_SIZE, epochs
    model = main.build_model(main.Trial(network, False, *setting, seed=0))
    functions = main.epoch_functions(model, BATCH_SIZE, train, validation)
    train_epoch, validate = functions
    shuffle = np.random.default_rng(0)
    mark()
    for _ in range(1 + epochs):
        order = shuffle.permutation(len(train[0])).astype("int32")
        [float(value) for value in (*train_epoch(order), *validate())]
        mark()
    util.to_hdf5(model, {})  # for the peak memory


def keras_usual(network, data, epochs, mark):
    model = compiled_model(network)
    import tensorflow as tf

    def scale(image, label):
        return tf.cast(image, tf.float32) / 255, label

    train, validation = map(tf.data.Dataset.from_tensor_slices, data)
    train = train.map(scale).shuffle(10_000).batch(BATCH_SIZE)
    validation = validation.map(scale).batch(BATCH_SIZE)
    fit(model, epochs, mark, train, validation_data=validation)


def keras_best(network, data, epochs, mark, threads=None):
    model = compiled_model(network, threads, steps_per_execution=125)  # of 375
    train, validation = [(scaled(images), labels) for images, labels in data]
    options = {"batch_size": BATCH_SIZE, "validation_batch_size": 1000}
    fit(model, epochs, mark, *train, validation_data=validation, **options)


def compiled_model(network, threads=None, **options):
    networks = util.import_quietly("model-FMNIST")
    import keras
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = getattr(networks, f"build_{network}")(dropout_rate=DROPOUT_RATE)
    options |= {"loss": "categorical_crossentropy", "metrics": ["accuracy"]}
    model.compile(keras.optimizers.Adam(LEARNING_RATE), **options)
    return model


def fit(model, epochs, mark, *data, **options):
    import keras

    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: mark())
    mark()
    model.fit(*data, epochs=1 + epochs, callbacks=[clock], verbose=0, **options)


def scikit_learn(network, data, epochs, mark):
    from sklearn.neural_network import MLPClassifier

    images, labels = data[0]
    x, y = scaled(images).reshape(len(images), -1), labels.argmax(1)
    setting = {"batch_size": BATCH_SIZE, "learning_rate_init": LEARNING_RATE}
    ending = {"max_iter": epochs, "n_iter_no_change": epochs}
    model = MLPClassifier(LAYERS[network][1:-1], alpha=0, **setting, **ending)
    mark()
    model.fit(x[:1280], y[:1280])
    mark()
    model.fit(x, y)
    mark(epochs)


def scaled(images):
    return images / np.float32(255)


def floor(network, data, epochs, mark):
    """For every layer and batch: the outputs, the gradients of the weights and of the
    inputs; in validation the outputs. The speed does not depend on the values."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    training, validation = [], []
    for inputs, units in itertools.pairwise(LAYERS[network]):
        shapes = (BATCH_SIZE, inputs), (inputs, units), (BATCH_SIZE, units)
        x, weights, gradients = [np.ones(shape, "float32") for shape in shapes]
        x_val = np.ones((1000, inputs), "float32")
        pairs = (x, weights), (x.T, gradients), (gradients, weights.T), (x_val, weights)
        products = [(a, b, a @ b) for a, b in pairs]
        training += products[:3]
        validation += products[3:]
    del training[2]  # nobody asks for the gradients of the images
    epoch = training * (len(data[0][0]) // BATCH_SIZE)
    epoch += validation * (len(data[1][0]) // 1000)
    mark()
    for _ in range(1 + epochs):
        for a, b, product in epoch:
            np.matmul(a, b, out=product)
        mark()


OURS, ALONE, USUAL = "ours, 1 trial per core", "ours, 1 trial alone", "Keras, as usual"
WAYS = {  # name: (how to train, whether in as many processes as cores)
    OURS: (ours, True),
    ALONE: (ours, False),
    USUAL: (keras_usual, False),
    "Keras at its best": (keras_best, False),
    "Keras at its best, 1 per core": (functools.partial(keras_best, threads=1), True),
    "scikit-learn": (scikit_learn, False),
    "floor, 1 per core": (floor, True),
}


# ---------------------------------------------------------------------- measuring them


def measure(way, network, data, epochs):
    """Train in fresh processes side by side: what `report` sends, for each of them."""
    function, one_per_core = WAYS[way]
    count = util.count_cores() if one_per_core else 1
    context = multiprocessing.get_context("spawn")
    barrier, pipes = context.Barrier(count), [context.Pipe() for _ in range(count)]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for us alone
    try:
        for _, sender in pipes:
            arguments = function, network, data, epochs, barrier, sender
            context.Process(target=report, args=arguments).start()
            sender.close()  # so that a process that dies ends the wait for its report
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()


def report(function, network, data, epochs, barrier, sender):
    """In a process of its own: train, then send the times and the peak memory."""
    warnings.simplefilter("ignore")  # that so few epochs have not converged, and such
    times, since = [], time.perf_counter()

    def mark(epochs=1):
        nonlocal since
        times.append((time.perf_counter() - since) / epochs)
        if len(times) <= 2:  # all set up; warmed up: wait for those side by side
            barrier.wait()
        since = time.perf_counter()

    function(network, data, epochs, mark)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    sender.send({"first": times[1], "epochs": times[2:], "peak_mib": memory})


def measure_programs(rounds):
    """Seconds of whole processes, from just before they start until they have ended:
    `first_step`, and main-FMNIST.py --evaluate with the models that models/ has."""

    def seconds(script, *arguments):
        start, command = time.perf_counter(), [sys.executable, ROOT / script]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        quiet["start_new_session"] = True  # Ctrl-C is for us, and we kill the process
        subprocess.run([*command, *arguments], check=True, **quiet)
        return time.perf_counter() - start

    first_step = "tests/benchmark.py", "--first-step"
    models = sorted(ROOT.glob("models/model_*_[01].h5"))
    with tempfile.TemporaryDirectory() as folder:
        evaluate = "main-FMNIST.py", "--output-dir", folder, "--evaluate", *models
        return {
            "First training step": [seconds(*first_step) for _ in range(rounds)],
            f"--evaluate of {len(models)} models": [
                seconds(*evaluate) for _ in range(rounds if models else 0)
            ],
        }


def first_step():
    """In a process of its own: the way of main-FMNIST.py up to its first training step,
    with one worker and one batch as the whole trial; it validates and saves, too."""
    train, validation, _ = util.load_data()
    train = [part[:BATCH_SIZE] for part in train]
    setting = DROPOUT_RATE, LEARNING_RATE, BATCH_SIZE
    trial = main.Trial("tyler", False, *setting, epochs=1, seed=0)
    with main.local_workers(1, train, validation) as workers:
        list(main.run_trials([trial], workers))


# -------------------------------------------------------------------- what is reported


def summarize(reports):
    """{(way, network): figures}: `seconds` per epoch and trial and their `ratio` to ours;
    `first`, how many seconds longer a process takes for its first epoch."""
    figures = {}
    for (way, network), runs in reports.items():
        epoch = float(np.median([run["epochs"] for run in runs]))
        seconds = epoch / (util.count_cores() if WAYS[way][1] else 1)
        figures[way, network] = {
            "seconds": seconds,
            "first": float(np.median([run["first"] for run in runs])) - epoch,
            "peak_mib": max(run["peak_mib"] for run in runs),
            "runs": runs,
        }
    for (_, network), row in figures.items():
        row["ratio"] = row["seconds"] / figures[OURS, network]["seconds"]
    return figures


def whole_experiment(figures):
    """{how: (trainings, minutes)}: estimated from the epochs' times alone, whatever the
    batch size, and as the description has it, each value of each panel a training."""
    options = main.parse_options([])
    final = main.final_trials(options)
    study = main.study_trials(final, 48_000)
    separate = [*final.values(), *itertools.chain(*study.values())]
    once = {trial._replace(epochs=options.epochs) for trial in separate}

    def minutes(way, trials):
        return sum(t.epochs * figures[way, t[0]]["seconds"] for t in trials) / 60

    plans = {USUAL: separate, OURS: once}
    return {way: (len(plan), minutes(way, plan)) for way, plan in plans.items()}


def describe_machine():
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    cpu = re.search("model name\\s*: (.*)", text) or [0, platform.machine()]
    versions = util.library_versions()
    versions["scikit-learn"] = importlib.metadata.version("scikit-learn")
    return {"cores": util.count_cores(), "cpu": cpu[1], **versions}


def print_figures(machine, figures, programs, experiment):
    show(", ".join(f"{name} {value}" for name, value in machine.items()))
    title = "Seconds per epoch and trial, ratio to ours, peak MiB of a process"
    table = Table("", title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("Tyler", "ratio", "MiB", "Jackson", "ratio", "MiB"):
        table.add_column(header, justify="right")
    for way in WAYS:
        rows = [figures[way, network] for network in LAYERS]
        texts = ["{seconds:.3f} {ratio:.2f} {peak_mib:.0f}".format(**r) for r in rows]
        table.add_row(way, *" ".join(texts).split())
    show(table)
    for network in LAYERS:
        ratio, first = figures[ALONE, network]["ratio"], figures[OURS, network]["first"]
        text = f"{ratio:.2f} times the throughput of one trial alone"
        show(f"{network.title()}: {text}, first epoch {first:+.1f} s")
    for what, times in programs.items():
        end = f"ends after {np.median(times):.1f} s" if times else "is not measured"
        show(f"{what} {end}")
    for way, (count, minutes) in experiment.items():
        text = f"{count} trainings, {minutes:.0f} min (estimated)"
        show(f"The whole experiment, {way}: {text}")
    ratio = experiment[USUAL][1] / experiment[OURS][1]
    show(f"The whole experiment, ratio: {ratio:.1f}")


# -------------------------------------------------------------------- the command line


def benchmark(options):
    # Where this is set, it may name an older processor. Without it, in the processes to
    # come, NumPy's BLAS takes its best kernels for this one: only then is the floor one.
    os.environ.pop("OPENBLAS_CORETYPE", None)
    data = util.load_data()[:2]
    reports = {turn: [] for turn in itertools.product(WAYS, LAYERS)}
    turns = sorted(reports, key=lambda turn: turn[1]) * options.rounds
    hidden = not main.console.is_terminal
    for turn in track(turns, "Training", transient=True, disable=hidden):
        reports[turn] += measure(*turn, data, options.epochs)
    figures, programs = summarize(reports), measure_programs(options.rounds)
    machine, experiment = describe_machine(), whole_experiment(figures)
    print_figures(machine, figures, programs, experiment)
    if options.json:
        ways = {f"{way}, {network}": row for (way, network), row in figures.items()}
        result = {"machine": machine, "ways": ways, "programs_seconds": programs}
        result["experiment_trainings_and_minutes"] = experiment
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, count = parser.add_argument, main.HYPERPARAMETERS["epochs"]
    add("--epochs", metavar="N", type=count, default=5, help="(default %(default)s)")
    add("--rounds", metavar="N", type=count, default=3, help="(default %(default)s)")
    add("--json", metavar="FILE", type=Path, help="write all figures there")
    add("--first-step", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = parse_options()
    try:
        first_step() if options.first_step else benchmark(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except (EOFError, OSError, util.InputError, subprocess.SubprocessError) as error:
        sys.exit(f"benchmark.py: {str(error) or 'a process has died'}")
