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

Every way starts in fresh processes and trains for one epoch more than is counted, so
that tracing and other first-time work stay out. All take their turn in every round,
and what is shown are medians over rounds and epochs of the seconds per epoch (training
and validation) and trial: where n trials run side by side, a trial counts for 1/n of
the epoch's time. The benchmark needs the machine for itself and takes some minutes.
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
from pathlib import Path

import numpy as np
from rich import box
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
main = importlib.import_module("main-FMNIST")
util = main.util

LAYERS = {  # units per layer, image and classes included
    "tyler": (784, 128, 128, 128, 128, 128, 10),
    "jackson": (784, 512, 256, 128, 64, 10),
}
BATCH_SIZE, LEARNING_RATE, DROPOUT_RATE = 128, 0.001, 0.3
STEPS_PER_EXECUTION = int(__import__("os").environ.get("SPS", 125))


# ------------------------------------------------------------------ the ways to train
# Each takes the network's name, (training, validation) data as util.load_data gives
# them, and the number of epochs; it calls `mark` when all is set up, after a warm-up
# epoch, and after each further epoch.


def ours(network, data, epochs, mark):
    """The program's own steps, as in main.train_trial."""
    main.start_worker(*data)
    train, validation = main.worker_data
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
    util.to_hdf5(model, {})  # part of a worker's peak memory


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
    model = compiled_model(network, threads, steps_per_execution=STEPS_PER_EXECUTION)
    (x, y), (x_val, y_val) = [(scaled(images), labels) for images, labels in data]
    validation = (x_val, y_val)
    size = {"batch_size": BATCH_SIZE, "validation_batch_size": 1000}
    fit(model, epochs, mark, x, y, validation_data=validation, **size)


def scikit_learn(network, data, epochs, mark):
    import warnings

    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")  # that so few epochs have not converged
    images, labels = scaled(data[0][0]).reshape(-1, 784), data[0][1].argmax(1)
    model = MLPClassifier(
        LAYERS[network][1:-1],
        alpha=0,
        batch_size=BATCH_SIZE,
        learning_rate_init=LEARNING_RATE,
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=0,
    )
    mark()
    model.fit(images[:1280], labels[:1280])
    mark()
    model.fit(images, labels)
    mark(epochs)


def floor(network, data, epochs, mark):
    """Per batch: forward products, weight gradients, and all input gradients but the
    first layer's; then the validation images' forward products. One BLAS thread."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    (x, x_val), sizes = [scaled(x).reshape(-1, 784) for x, _ in data], LAYERS[network]
    weights = [np.full(shape, 0.01, "float32") for shape in zip(sizes, sizes[1:])]
    weight_gradients = [np.empty_like(weight) for weight in weights]
    outputs, gradients, val_outputs = (
        [np.ones((rows, size), "float32") for size in sizes[1:]]
        for rows in (BATCH_SIZE, BATCH_SIZE, 1000)
    )
    mark()
    for _ in range(1 + epochs):
        for batch in np.split(x, len(x) // BATCH_SIZE):
            inputs = [batch, *outputs]
            for weight, start, end in zip(weights, inputs, outputs):
                np.matmul(start, weight, out=end)
            for i in reversed(range(len(weights))):
                np.matmul(inputs[i].T, gradients[i], out=weight_gradients[i])
                if i > 0:
                    np.matmul(gradients[i], weights[i].T, out=gradients[i - 1])
        for batch in np.split(x_val, len(x_val) // 1000):
            for weight, start, end in zip(weights, [batch, *val_outputs], val_outputs):
                np.matmul(start, weight, out=end)
        mark()


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


def scaled(images):
    return images / np.float32(255)


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
    """Train in fresh processes side by side; what `report` says, one per process."""
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
    """In a process of its own: train, and send the times and the peak memory."""
    times, since = [], time.perf_counter()

    def mark(epochs=1):
        nonlocal since
        times.append((time.perf_counter() - since) / epochs)
        if len(times) <= 2:  # set-up and warm-up done: wait for those side by side
            barrier.wait()
        since = time.perf_counter()

    function(network, data, epochs, mark)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
    sender.send({"first": times[1], "seconds": times[2:], "peak_mib": memory})


def first_step():
    """The program's start up to its first training step: `--first-step` runs this in a
    process of its own. The one batch is a trial, so its saving counts too."""
    train, validation, _ = util.load_data()
    train = [part[:BATCH_SIZE] for part in train]
    trial = main.final_trials(main.parse_options(["--epochs", "1"]))["model_tyler_0"]
    with main.local_workers(1, train, validation) as workers:
        list(main.run_trials([trial], workers))


def seconds_of(script, *arguments):
    """Wall time of a script, from before its process starts until it has ended."""
    start = time.perf_counter()
    command = [sys.executable, ROOT / script, *arguments]
    subprocess.run(command, check=True, capture_output=True, start_new_session=True)
    return time.perf_counter() - start


def measure_rounds(rounds, epochs):
    """{way: {network: reports}}, and the times of starts and of evaluations."""
    data = util.load_data()[:2]
    reports = {way: {network: [] for network in LAYERS} for way in WAYS}
    starts, evaluations = [], []
    models = sorted(ROOT.glob("models/model_*_[01].h5"))
    turns = list(itertools.product(range(rounds), [None, *WAYS], LAYERS))
    hidden = not main.console.is_terminal
    for _, way, network in track(turns, "Measuring", disable=hidden, transient=True):
        if way:
            reports[way][network] += measure(way, network, data, epochs)
        elif network == "tyler":
            starts.append(seconds_of("tests/benchmark.py", "--first-step"))
        elif len(models) == 4:
            with tempfile.TemporaryDirectory() as folder:
                command = "--output-dir", folder, "--evaluate", *models
                evaluations.append(seconds_of("main-FMNIST.py", *command))
    return reports, {
        "From start to the end of the first training step": starts,
        "--evaluate of the four models": evaluations,
    }


# -------------------------------------------------------------------- what is reported


def summarize(reports):
    """{way: {network: figures}}: `seconds` per epoch and trial, their `ratio` to ours,
    and `first`, what the first epoch of a process takes longer than the next."""
    figures = {way: {} for way in reports}
    for way, network in itertools.product(reports, LAYERS):
        runs = reports[way][network]
        epoch = float(np.median([run["seconds"] for run in runs]))
        seconds = epoch / (util.count_cores() if WAYS[way][1] else 1)
        ours = figures[OURS].get(network, {"seconds": seconds})  # comes first
        figures[way][network] = {
            "seconds": seconds,
            "ratio": seconds / ours["seconds"],
            "first": float(np.median([run["first"] for run in runs])) - epoch,
            "peak_mib": max(run["peak_mib"] for run in runs),
            "runs": runs,
        }
    return figures


def whole_experiment(figures):
    """The estimated minutes of all epochs of the experiment, as the description has
    it, each value of each panel trained on its own with the usual Keras; and ours."""
    options = main.parse_options([])
    final = main.final_trials(options)
    study = main.study_trials(final, 48_000)
    separate = [*final.values(), *itertools.chain(*study.values())]
    shared = {trial._replace(epochs=options.epochs) for trial in separate}

    def minutes(trials, way):
        seconds = {network: row["seconds"] for network, row in figures[way].items()}
        return sum(trial.epochs * seconds[trial.architecture] for trial in trials) / 60

    usual, ours = minutes(separate, USUAL), minutes(shared, OURS)
    return {
        "usual_trainings": len(separate),
        "usual_minutes": usual,
        "ours_trainings": len(shared),
        "ours_minutes": ours,
        "ratio": usual / ours,
    }


def describe_machine():
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    return {
        "cores": util.count_cores(),
        "cpu": model[1] if model else platform.machine(),
        **util.library_versions(),
        "scikit-learn": importlib.metadata.version("scikit-learn"),
    }


def show(result):
    show, figures = main.console.print, result["ways"]
    cores, cpu, *versions = result["machine"].values()
    show(f"{cores} cores, {cpu}")
    names = [*result["machine"]][2:]
    show(", ".join(f"{name} {version}" for name, version in zip(names, versions)))
    show(f"{result['rounds']} rounds of {result['epochs']} epochs")

    title = "Seconds per epoch and trial, ratio to ours, peak memory of a process"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("Tyler", "ratio", "Jackson", "ratio", "MiB"):
        table.add_column(name, justify="right")
    for way, networks in figures.items():
        cells = [
            cell
            for row in networks.values()
            for cell in (f"{row['seconds']:.3f}", f"{row['ratio']:.2f}")
        ]
        peak = max(row["peak_mib"] for row in networks.values())
        table.add_row(way, *cells, f"{peak:.0f}")
    show(table)

    for network in LAYERS:
        row, scaling = figures[OURS][network], figures[ALONE][network]["ratio"]
        show(
            f"{network.title()}: {cores} workers have {scaling:.2f} times the throughput "
            f"of one;\n  {row['peak_mib']:.0f} MiB each at the peak; the first epoch "
            f"takes {row['first']:.1f} s longer (tracing)"
        )
    for what, seconds in result["programs"].items():
        text = f"{np.median(seconds):.1f} s" if seconds else "models/ lacks the four"
        show(f"{what}: {text}")
    whole = result["experiment"]
    show(
        "The whole experiment, estimated from these epochs: "
        f"{whole['usual_minutes']:.0f} min as\n  {whole['usual_trainings']} separate "
        f"trainings with the usual Keras, {whole['ours_minutes']:.0f} min as our "
        f"{whole['ours_trainings']}: {whole['ratio']:.1f} times"
    )


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    count = main.HYPERPARAMETERS["epochs"]
    add = parser.add_argument
    add("--epochs", metavar="N", type=count, default=4, help="timed, of each training")
    add("--rounds", metavar="N", type=count, default=3)
    add("--json", metavar="FILE", type=Path, help="write all figures there")
    add("--first-step", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def benchmark(options):
    # Some machines set this for old kernels' sake; without it, NumPy's BLAS picks the
    # best for this one, so that the floor (and scikit-learn) is as low as it can be.
    os.environ.pop("OPENBLAS_CORETYPE", None)  # before a child imports NumPy
    reports, programs = measure_rounds(options.rounds, options.epochs)
    figures = summarize(reports)
    result = {
        "machine": describe_machine(),
        "rounds": options.rounds,
        "epochs": options.epochs,
        "ways": figures,
        "programs": programs,
        "experiment": whole_experiment(figures),
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    options = parse_options()
    try:
        first_step() if options.first_step else benchmark(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except (EOFError, subprocess.CalledProcessError) as error:
        sys.exit(f"benchmark.py: a process failed: {error}")
