"""Fashion-MNIST with two fully connected networks: the whole experiment.

    python main-FMNIST.py

trains Tyler and Jackson, without and with L2 regularization; moves one hyperparameter
of Tyler at a time; saves the four models, tables and plots; and ends with a table of
test results. A training that is finished is kept, and never done again.
"""

import argparse
import asyncio
import gc
import importlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from rich import progress

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # with PYTHONSAFEPATH, Python does not do this
util = importlib.import_module("util-FMNIST")  # `import` cannot spell the hyphen

# The published values. Epochs are not here: the accuracies after 10, 20, 30, 40 and 50
# come from a single trial.
STUDY = {
    "dropout_rate": (0.1, 0.2, 0.3, 0.4, 0.5),
    "learning_rate": (0.0001, 0.0003, 0.001, 0.003, 0.01),
    "batch_size": (32, 64, 128, 256, 512),
}
SCORES = ("loss", "accuracy", "precision", "recall", "f1")
COMPARED = (("Tyler", "Jackson"), ("Tyler", "Tyler + L2"), ("Jackson", "Jackson + L2"))
PUBLISHED = "0.8882, 0.8786, 0.8915, 0.8716"  # the four models' test accuracies


# ------------------------------------------------------------------------ the trials
class Setting(NamedTuple):
    """What is trained: a network and its hyperparameters."""

    architecture: str  # "tyler" or "jackson"
    use_regularizer: bool
    dropout_rate: float
    learning_rate: float
    batch_size: int  # images
    epochs: int

    @property
    def label(self):
        return self.architecture.title() + (" + L2" if self.use_regularizer else "")

    @property
    def name(self):
        return f"{self.architecture}_{self.use_regularizer:d}"  # as in model_tyler_0.h5


class Trial(NamedTuple):
    """One training: what is trained, and the seed of all its random numbers."""

    setting: Setting
    seed: int


class Point(NamedTuple):
    """A dot of the study's plot: what the setting reaches after this epoch."""

    hyperparameter: str
    value: float
    setting: Setting
    epoch: int  # where the accuracy is read; before the last in the study of epochs
    centre: Setting  # the final setting, from which the value was moved


def final_settings(options):
    """The settings of the four published models."""
    return [
        Setting(
            architecture, use_regularizer, options.dropout_rate, options.learning_rate,
            options.batch_size, options.epochs,
        )
        for architecture in ("tyler", "jackson")
        for use_regularizer in (False, True)
    ]  # fmt: skip


def study_points(final):
    """The study's points. Each moves one value of Tyler's final setting, the centre."""
    points = []
    tylers = [setting for setting in final if setting.architecture == "tyler"]
    for centre in tylers:
        for name, published in STUDY.items():
            # The centre's own value, too, if it is not a published one.
            for value in sorted({*published, getattr(centre, name)}):
                setting = centre._replace(**{name: value})
                points.append(Point(name, value, setting, setting.epochs, centre))
        # Each fifth of the training: epochs 10, 20, 30, 40 and 50.
        fifths = {math.ceil(centre.epochs * i / 5) for i in range(1, 6)}
        for epoch in sorted(fifths):
            points.append(Point("epochs", epoch, centre, epoch, centre))
    return points


# -------------------------------------------------------------------------- one trial
def train_trial(trial, train, validation, epoch_ended=lambda: None):
    """Train one network and return its .h5 file as bytes.

    `train` and `validation` are (images, labels) as `util.load_data` gives them. When a
    weight or a value of the history is not finite, training stops, and the history is
    NaN from this epoch on. `epoch_ended` is called after each epoch.
    """
    gc.collect()  # frees the last trial's graphs, 70 MiB that refer to each other
    tf, _ = util.import_tensorflow()
    setting = trial.setting
    x_train, y_train = map(tf.constant, train)
    x_val, y_val = map(tf.constant, validation)
    model = build_model(trial)
    run_epoch = epoch_function(model, setting.learning_rate)
    random = np.random.default_rng(trial.seed)
    validation_order = np.arange(len(x_val), dtype="int32")
    history = np.full((setting.epochs, len(util.METRICS)), math.nan)
    for epoch in range(setting.epochs):
        order = random.permutation(len(x_train)).astype("int32")
        trained = run_epoch(x_train, y_train, order, setting.batch_size, training=True)
        # The batch size of the validation, 1000, changes nothing but its time.
        validated = run_epoch(x_val, y_val, validation_order, 1000, training=False)
        values = np.array([*trained, *validated])
        if not all(np.isfinite(x).all() for x in (values, *model.get_weights())):
            break  # weights, too: the graph's fused operations turn some NaN into 0
        history[epoch] = values
        epoch_ended()
    description = {**setting._asdict(), "seed": trial.seed}
    description["training_images"] = len(x_train)
    for library, version in util.library_versions().items():
        description[f"{library}_version"] = version
    metrics = dict(zip(util.METRICS, history.T))
    return util.model_file(model, setting.learning_rate, metrics, description)


def build_model(trial):
    """The trial's network. Its weights and dropout depend on the trial's seed alone.

    Each layer gets a seed of its own. Keras's global seed would not do, as a Dask worker
    may train two trials at a time.
    """
    _, keras = util.import_tensorflow()
    setting = trial.setting
    networks = importlib.import_module("model-FMNIST")
    build = getattr(networks, f"build_{setting.architecture}")
    model = build(10, setting.use_regularizer, setting.dropout_rate)
    for index, layer in enumerate(model.layers):
        layer_seed = 100 * trial.seed + index  # networks have fewer than 100 layers
        if isinstance(layer, keras.layers.Dense):
            # As Dense(kernel_initializer=...) would do it. Biases start at 0.
            initializer = keras.initializers.GlorotUniform(layer_seed)
            layer.kernel.assign(initializer(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dropout) and layer.rate:
            # As Dropout(seed=...) would do it. With a rate of 0, there is no generator.
            layer.seed_generator.state.assign([layer_seed, 0])
    return model


def epoch_function(model, learning_rate):
    """A function that takes the model through a whole epoch, as one TensorFlow graph.

    run_epoch(images, labels, order, batch_size, training) returns the images' mean loss
    and accuracy, as `model.fit` counts them. `order` has the images' numbers, int32 (n,).
    Why not `fit`: it does the same arithmetic, but returns to Python for every batch.
    """
    tf, keras = util.import_tensorflow()
    cross_entropy = keras.losses.CategoricalCrossentropy()
    weights = [weight.value for weight in model.trainable_variables]
    update_weights = adam_function(weights, learning_rate)

    @tf.function
    def run_epoch(images, labels, order, batch_size, training):
        loss_sum = hits = 0.0
        # The graph has this loop. Python runs it, and its `if`, as the graph is built.
        for start in tf.range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            x = tf.cast(tf.gather(images, batch), tf.float32) / 255
            y = tf.gather(labels, batch)
            with tf.GradientTape() as tape:
                probabilities = model(x, training=training)
                loss = cross_entropy(y, probabilities) + sum(model.losses)  # L2's
            if training:
                update_weights(tape.gradient(loss, weights))
            right = tf.equal(tf.argmax(probabilities, 1), tf.argmax(y, 1))
            loss_sum += loss * tf.cast(len(batch), tf.float32)
            hits += tf.reduce_sum(tf.cast(right, tf.float32))
        return loss_sum / len(order), hits / len(order)

    return run_epoch


def adam_function(weights, learning_rate):
    """A function that takes gradients and changes the weights by one step of Adam.

    At step t, for each weight w with the gradient g:
        m = beta_1 * m + (1 - beta_1) * g            the mean gradient
        v = beta_2 * v + (1 - beta_2) * g * g        the mean squared gradient
        rate = learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t)
        w = w - rate * m / (sqrt(v) + epsilon)
    TensorFlow does this in one operation per weight. Keras's optimizer takes a dozen.
    """
    tf, _ = util.import_tensorflow()
    beta_1 = util.ADAM["beta_1"]
    beta_2 = util.ADAM["beta_2"]
    step = tf.Variable(0.0)
    means = [tf.Variable(tf.zeros_like(w)) for w in weights]
    squares = [tf.Variable(tf.zeros_like(w)) for w in weights]

    def update_weights(gradients):
        t = step.assign_add(1)
        beta_1_power = beta_1**t
        beta_2_power = beta_2**t
        for w, m, v, g in zip(weights, means, squares, gradients):
            # A raw operation takes a variable by its handle, and changes it.
            tf.raw_ops.ResourceApplyAdam(
                var=w.handle, m=m.handle, v=v.handle, grad=g,
                beta1_power=beta_1_power, beta2_power=beta_2_power, lr=learning_rate,
                beta1=beta_1, beta2=beta_2, epsilon=util.ADAM["epsilon"],
            )  # fmt: skip

    return update_weights


# --------------------------------------------------------------- many trials at a time
def train_missing(trials, data, store, options):
    """Train the trials that the store lacks. Return {trial: its .h5 file} of all trials.

    If a worker dies, others train what is still missing.
    """
    longest_first = sorted(trials, key=cost, reverse=True)  # short ones fill the end
    keys = util.trial_keys(longest_first, data)
    stored = {} if options.fresh else util.stored_trials(store)
    files = {trial: stored[key] for trial, key in keys.items() if key in stored}
    print(f"{len(keys)} trials, {len(files)} of them trained before")
    if len(files) == len(keys):
        return files
    print(f"{len(keys) - len(files)} to train. First, TensorFlow starts.")
    print("network       dropout  learning  batch  seed  val.acc.  done")
    train_all = train_here if options.cluster is None else train_on_cluster
    columns = (
        progress.SpinnerColumn(), "Training", progress.BarColumn(13),
        progress.TaskProgressColumn(), progress.TimeElapsedColumn(), "elapsed",
        progress.TimeRemainingColumn(), "left",
    )  # fmt: skip
    for _ in range(5):
        missing = {trial: key for trial, key in keys.items() if trial not in files}
        with progress.Progress(*columns, disable=not sys.stdout.isatty()) as bar:
            bar.add_task("Training", total=sum(map(cost, missing)))
            try:
                for trial, path in train_all(missing, store, data, options, bar):
                    files[trial] = path
                    print(f"{trial_line(trial, path)}  {len(files):4}")
                return files
            except futures.BrokenExecutor:
                print("A worker died. What is missing is trained by others.")
    raise util.InputError("workers died five times: is there memory for --jobs?")


def cost(trial):
    """About how long a trial takes, as measured: in epochs of Tyler with huge batches."""
    per_image = {"tyler": 1, "jackson": 4}[trial.setting.architecture]
    return trial.setting.epochs * (per_image + 16 / trial.setting.batch_size)


def trial_line(trial, path):
    setting = trial.setting
    accuracy = util.read_histories([path])["val_accuracy"][0, -1]
    result = "diverged" if math.isnan(accuracy) else f"{accuracy:.4f}"
    rates = f"{setting.dropout_rate:7g}  {setting.learning_rate:7g}"
    return f"{setting.label:12}  {rates}  {setting.batch_size:5}  {trial.seed:4}  {result:8}"


def train_here(keys, store, data, options, bar):
    """Train in processes of this machine, which load the data themselves. `keys` is
    {trial: its key}. Yield each trial and its file in the store."""
    spawn = multiprocessing.get_context("spawn")
    work_done = spawn.RawValue("d")  # the cost of the epochs that are trained
    shared = (work_done, store / "temporary")
    pool = futures.ProcessPoolExecutor(options.jobs, spawn, start_worker, shared)
    # A terminal sends Ctrl-C to all processes. Workers are started while it is ignored,
    # and inherit that. Then this process heeds it again, and ends them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        running = {}
        for trial, key in keys.items():
            running[pool.submit(train_in_worker, trial, key, store, options)] = trial
        signal.signal(signal.SIGINT, handler)
        while running:
            for future in futures.wait(running, 0.5, futures.FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
            bar.update(task_id=0, completed=work_done.value)
    finally:
        for process in multiprocessing.active_children():  # they ignore Ctrl-C
            process.kill()
        pool.shutdown()


def start_worker(shared_number, folder):
    """Prepare a new worker. TensorFlow writes files into the temporary folder, and a
    worker that is killed leaves them. So the folder is in the store, which is cleared."""
    global work_done  # a process gets a shared number only as it starts
    work_done = shared_number
    tempfile.tempdir = str(folder)
    # Keras imports these two if it can, which costs a worker 80 MiB and a second. An
    # import of what is None here fails.
    sys.modules["sklearn"] = None
    sys.modules["matplotlib"] = None
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # stderr: errors reach the parent as exceptions

    def end_with_parent():  # which may be killed
        multiprocessing.parent_process().join()
        os._exit(1)  # sys.exit would end this thread only

    threading.Thread(target=end_with_parent, daemon=True).start()


def train_in_worker(trial, key, store, options):
    """Train a trial and return its file in the store. Its content would be a large
    message, and the pool hangs for ever if a worker dies while it sends one."""

    def epoch_ended():  # two at once may lose a step of the bar, and nothing else
        work_done.value += cost(trial) / trial.setting.epochs

    train, validation, _ = util.load_data(options.data_dir, options.quick)
    content = check_and_train(trial, key, train, validation, epoch_ended)
    return util.keep_trial(store, key, content)


def check_and_train(trial, key, train, validation, epoch_ended=lambda: None):
    """Train a trial in a worker. Raises InputError if its scripts, data or libraries are
    not those of the run: then its key is another one."""
    util.import_tensorflow()
    importlib.import_module("model-FMNIST")
    if util.trial_keys([trial], (train, validation)) != {trial: key}:
        problem = "a worker's scripts, data or libraries are not those of this run"
        raise util.InputError(f"{problem}: start again (a cluster, too)")
    return train_trial(trial, train, validation, epoch_ended)


def train_on_cluster(keys, store, data, options, bar):
    """As `train_here`, on a Dask cluster. It gets our scripts and a copy of the data."""
    flag = f"--cluster {options.cluster}"
    logging.disable()  # Dask's log lines; its errors reach us as exceptions
    try:
        import distributed
        from distributed.comm import connect

        # Client would wait for ever for a port that speaks, say, HTTP.
        asyncio.run(asyncio.wait_for(connect(options.cluster), util.TIMEOUT))
        client = distributed.Client(options.cluster, timeout=util.TIMEOUT)
        client.wait_for_workers(1, timeout=util.TIMEOUT)
        send_scripts(client)
    except ImportError:
        raise util.InputError(f"{flag}: pip install dask[distributed] first") from None
    except (OSError, ValueError, distributed.TimeoutError) as error:
        reason = str(error) or "no Dask scheduler answers there"
        raise util.InputError(f"{flag}: {reason}") from None
    # Here, our module is called "__main__". Workers know it by its file's name.
    train = importlib.import_module("main-FMNIST").check_and_train
    try:
        with client:
            copies = client.scatter(data, broadcast=True)
            pool = client.get_executor(retries=2)
            running = {}
            for trial, key in keys.items():
                running[pool.submit(train, trial, key, *copies)] = trial
            for future in futures.as_completed(running):
                trial = running.pop(future)
                yield trial, util.keep_trial(store, keys[trial], future.result())
                bar.advance(task_id=0, advance=cost(trial))
    except (futures.CancelledError, distributed.KilledWorker) as error:
        # The scheduler is lost, or the workers that had the data or a trial.
        raise futures.BrokenExecutor from error


def send_scripts(client):
    """Send our scripts to the workers that lack them. Raises ValueError if a worker has
    other ones, which another run may be using."""
    scripts = {name: (HERE / name).read_bytes() for name in util.SCRIPTS}

    def scripts_there(dask_worker):  # Dask sends a local function as code
        paths = [Path(dask_worker.local_directory, name) for name in scripts]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    found = client.run(scripts_there)
    if not all(there in ({}, scripts) for there in found.values()):
        time.sleep(2)  # another run may be sending the same ones just now
        found = client.run(scripts_there)
    for worker, there in found.items():
        if there not in ({}, scripts):
            problem = f"worker {worker} has other versions of our scripts"
            raise ValueError(f"{problem}: restart the scheduler and the workers")
    if {} in found.values():
        for name in scripts:
            client.upload_file(str(HERE / name), load=False)


# ------------------------------------------------------------------------- the stages
def run_experiment(options):
    """The stages in their order."""
    train, validation, test = util.load_data(options.data_dir, options.quick)
    final = final_settings(options)
    points = [] if options.no_sweep else study_points(final)
    settings = [*final, *(point.setting for point in points)]
    settings = list(dict.fromkeys(settings))  # each once, in order
    seeds = range(options.seed, options.seed + options.repeats)
    trials = [Trial(setting, seed) for setting in settings for seed in seeds]
    folder = options.folder
    with util.open_store(folder / ".trials") as store:
        trained = train_missing(trials, (train, validation), store, options)
        files = {s: [trained[Trial(s, seed)] for seed in seeds] for s in settings}
        histories = {s: util.read_histories(paths) for s, paths in files.items()}
        study = study_rows(points, histories)
        print("Testing the models")
        results = {}
        for setting in final:
            models = map(util.load_classifier, files[setting])
            results[setting] = [test_model(model, test) for model in models]
        print("Writing the models, tables and plots")
        for setting in final:
            content = files[setting][0].read_bytes()  # of the first seed
            util.write_whole(folder / f"models/model_{setting.name}.h5", content)
        write_tables(folder / "models", histories, results, study, seeds)
        if not study:
            set_older_study_aside(folder)
        figures = draw(histories, results, study, test, options)
        note = ""
        if options.quick:
            note = "A quick run: differences of 3 points may be chance."
        for name, figure in figures.items():
            util.save_figure(figure, folder / f"plots/{name}.png", note)
    report_study(study)
    report_results(results)
    if options.quick:
        print("A quick run cannot be compared with these.")
    print(f"The files are in models/ and plots/ of {folder}")


def study_rows(points, histories):
    """The rows of study.csv. Differences are from Tyler's final setting, seed by seed,
    as a seed means the same first weights and the same order of the images."""
    rows = []
    for point in points:
        accuracies = histories[point.setting]["val_accuracy"][:, point.epoch - 1]
        differences = accuracies - histories[point.centre]["val_accuracy"][:, -1]
        mean, deviation, _ = util.mean_and_spread(accuracies)
        difference, _, error = util.mean_and_spread(differences)
        row = {
            "hyperparameter": point.hyperparameter,
            "value": point.value,
            "use_regularizer": point.setting.use_regularizer,
            "val_accuracy": mean,
            "standard_deviation": deviation,
            "difference": difference,
            "standard_error": error,
            "seeds": len(accuracies),
        }
        rows.append(row)
    return rows


def test_model(model, test):
    """Test a network: ({score: value}, class probabilities of shape (n, 10)).

    The loss has the L2 penalty, as Keras counts it. It is NaN for outputs that are no
    probabilities. All scores are NaN if a weight is.
    """
    from sklearn.metrics import precision_recall_fscore_support

    images, y_test = test
    x_test = (images / np.float32(255)).reshape(-1, *model.input_shape[1:])
    model.compile(loss="categorical_crossentropy")
    loss = model.evaluate(x_test, y_test, batch_size=1000, verbose=0)
    probabilities = model.predict(x_test, batch_size=1000, verbose=0)
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        return dict.fromkeys(SCORES, math.nan), probabilities
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        loss = math.nan
    true = y_test.argmax(axis=1)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, average="macro", zero_division=0
    )
    scores = (loss, np.mean(true == predicted), precision, recall, f1)
    return dict(zip(SCORES, map(float, scores))), probabilities


def write_tables(folder, histories, results, study, seeds):
    """history.csv, results.csv and, if there is a study, study.csv."""
    history_rows = []
    result_rows = []
    for setting, history in histories.items():
        for number, seed in enumerate(seeds):
            trial = {**setting._asdict(), "seed": seed}
            for epoch in range(setting.epochs):
                values = {name: runs[number, epoch] for name, runs in history.items()}
                history_rows.append({**trial, "epoch": epoch + 1, **values})
            if setting in results:
                scores, _ = results[setting][number]
                row = {"model": f"model_{setting.name}", **trial, **scores}
                result_rows.append(row)
    util.write_csv(folder / "history.csv", history_rows)
    util.write_csv(folder / "results.csv", result_rows)
    if study:
        util.write_csv(folder / "study.csv", study)


def set_older_study_aside(folder):
    """Rename an earlier run's study: this run's models may have another setting."""
    for name in ("models/study.csv", "plots/hyperparameters_tyler.png"):
        path = folder / name
        if path.exists():
            path.replace(path.with_name(f"older_{path.name}"))
            print(f"An earlier run's {name} is renamed older_{path.name}")


def draw(histories, results, study, test, options):
    """{name: figure} of all plots. Those of a single model show the first seed's."""
    images, y_test = test
    labels = y_test.argmax(axis=1)
    seed = f", seed {options.seed}" if options.repeats > 1 else ""
    final_histories = {setting: histories[setting] for setting in results}
    figures = {"accuracy_and_loss": util.plot_training(final_histories)}
    for setting, tested in results.items():
        scores, probabilities = tested[0]
        model = f"{setting.label}{seed}"
        title = f"{model}: test accuracy {scores['accuracy']:.2%}"
        figure = util.plot_confusion_matrix(title, labels, probabilities)
        figures[f"confusion_matrix_{setting.name}"] = figure
        if setting.label == "Jackson":
            figure = util.plot_predictions(model, images, labels, probabilities)
            figures["predictions"] = figure
        if not setting.use_regularizer:
            path = options.folder / f"models/model_{setting.name}.h5"
            figure = util.plot_architecture(util.load_classifier(path))
            figures[f"architecture_{setting.architecture}"] = figure
    if study:
        centre = next(iter(results))
        figures["hyperparameters_tyler"] = util.plot_hyperparameters(study, centre)
    return figures


def report_study(study):
    """The study in 60 columns: a line for each value, without L2 and with it."""
    if study:
        print("\nStudy of Tyler: validation accuracy, and its difference from")
        print("that of the final setting; left without L2, right with L2")
    without = [row for row in study if not row["use_regularizer"]]
    with_l2 = [row for row in study if row["use_regularizer"]]
    for plain, regularized in zip(without, with_l2):
        name = plain["hyperparameter"].split("_")[0]
        line = f"{name:8} {plain['value']:<6g}"
        for row in (plain, regularized):
            line += f" {row['val_accuracy']:.4f} {row['difference']:+.4f}"
            if row["seeds"] > 1:
                line += f"±{row['standard_error']:.4f}"
        print(line)
    if study and study[0]["seeds"] == 1:
        print("One seed: small differences may be chance.")


def report_results(results):
    """The test results: means over the seeds and, below, standard deviations."""
    line = "{:12} {:>8} {:>8} {:>9} {:>8} {:>8}"
    print("\n" + line.format("Test results", *SCORES))
    seeds = len(next(iter(results.values())))
    accuracies = {}
    for setting, tested in results.items():
        table = np.array([list(scores.values()) for scores, _ in tested])
        accuracies[setting.label] = table[:, SCORES.index("accuracy")]
        mean, deviation, _ = util.mean_and_spread(table)
        cells = [f"{value:.4f}".replace("nan", "diverged") for value in mean]
        print(line.format(setting.label, *cells))
        if seeds > 1:
            print(line.format("", *[f"±{value:.4f}" for value in deviation]))
    if seeds > 1:
        for one, other in COMPARED:
            gap, _, error = util.mean_and_spread(accuracies[one] - accuracies[other])
            print(f"{one} - {other}: {gap:+.4f}, standard error {error:.4f}")
    print("Published accuracies after 50 epochs, in the same order:")
    print(PUBLISHED)


def evaluate_files(options):
    """--evaluate: what saved models are, and how they score."""
    from sklearn.metrics import classification_report

    *_, test = util.load_data(options.data_dir, options.quick)
    labels = test[1].argmax(axis=1)
    folder = options.folder
    four = [folder / f"models/model_{s.name}.h5" for s in final_settings(options)]
    for path in map(Path, options.evaluate or four):
        model = util.load_classifier(path)
        print(f"\n{path}")
        print(f"{'layer':20} {'kind':8} {'output':>8}  {'':22} {'weights':>9}")
        for layer in util.layer_table(model):
            print("{:20} {:8} {!s:>8}  {:22} {:9,}".format(*layer))
        for name, value in util.read_description(path).items():
            print(f"{name:20} {value}")
        scores, probabilities = test_model(model, test)
        report = classification_report(
            labels, probabilities.argmax(axis=1), labels=range(10),
            target_names=util.CLASS_NAMES, zero_division=0,
        )  # fmt: skip
        print(report)
        numbers = [f"{name} {value:.4f}" for name, value in scores.items()]
        print(f"{len(labels):,} test images:", *numbers)
        if math.isnan(scores["loss"]):
            print(
                "No loss: its outputs are no probabilities, or a weight is not finite."
            )
        if options.output_dir:
            # Its folder is in the picture's name, as another one may have such a file.
            name = Path(os.path.relpath(path)).with_suffix("").as_posix()
            name = name.lstrip("./").replace("/", "-")  # no ../ at its beginning
            picture = folder / f"plots/confusion_matrix_{name}.png"
            title = f"{path.name}: test accuracy {scores['accuracy']:.2%}"
            figure = util.plot_confusion_matrix(title, labels, probabilities)
            util.save_figure(figure, picture)
            print(picture)


# -------------------------------------------------------------------- the command line
def parse_options(arguments):
    about = "Fashion-MNIST with two fully connected networks: the whole experiment."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.error = lambda message: fail(f"{message}; --help lists the options")
    add = parser.add_argument
    cores = joblib.cpu_count()
    add("--quick", action="store_true", help="a try-out: few images, 5 epochs, quick/")
    add("--no-sweep", action="store_true", help="the four models only, no study")
    add("--fresh", action="store_true", help="train again what was trained before")
    add("--evaluate", nargs="*", metavar="H5", help="inspect .h5 files (models/)")
    add("--data-dir", metavar="DIR", help="the folder with the four data files")
    add("--output-dir", metavar="DIR", type=Path, help="where models/ and plots/ go")
    add("--dropout-rate", metavar="X", type=float, default=0.3, help="0 to 0.99 (0.3)")
    add("--learning-rate", metavar="X", type=float, default=0.001, help="Adam (0.001)")
    add("--batch-size", metavar="N", type=int, default=128, help="in images (128)")
    add("--epochs", metavar="N", type=int, help="of training (50; quick: 5)")
    add("--seed", metavar="N", type=int, default=0, help="the first seed (0)")
    add("--repeats", metavar="N", type=int, default=1, help="how many seeds (1)")
    add("--jobs", metavar="N", type=int, default=cores, help="trials at a time (cores)")
    add("--cluster", metavar="ADDRESS", help="a Dask cluster, tcp://HOST:8786")
    options = parser.parse_args(arguments)
    if options.epochs is None:
        options.epochs = 5 if options.quick else 50
    beside_script = HERE / "quick" if options.quick else HERE
    options.folder = (options.output_dir or beside_script).resolve()
    limits = {
        "dropout_rate": (0, 0.99), "learning_rate": (1e-12, 1e12), "seed": (0, 10**7),
        "batch_size": (1, 10**6), "epochs": (1, 10**6), "repeats": (1, 1000),
        "jobs": (1, 61 if os.name == "nt" else 1000),  # Windows waits for 61 processes
    }  # fmt: skip
    for name, (low, high) in limits.items():
        flag = "--" + name.replace("_", "-")
        for value in (getattr(options, name), *STUDY.get(name, ())):
            if not low <= value <= high:
                fail(f"{flag} or STUDY: {value} is not a number from {low} to {high}")
    for name in STUDY:
        if name not in ("dropout_rate", "learning_rate", "batch_size"):
            fail(f"STUDY in this script cannot have {name!r}")
    return options


def main(arguments=None):
    if sys.stdout is None:
        fail("stdout is closed")
    # For terminals without ± and boxes; and a pipe gets each line at once.
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    options = parse_options(arguments)
    try:
        if options.evaluate is None:
            run_experiment(options)
        else:
            evaluate_files(options)
    except KeyboardInterrupt:
        fail("interrupted; to continue, give the same command again", 130)
    except (MemoryError, OSError, UnicodeError, util.InputError) as error:
        fail(str(error) or "out of memory")


def fail(message, status=2):
    """End with one line on stderr, whatever the message has."""
    print("main-FMNIST.py:", *message.split(), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
