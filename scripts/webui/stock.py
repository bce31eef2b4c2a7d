"""The host's own training of embeddings and hypernetworks, with every picture's loss and our schedules.

Only the host's two training functions are replaced for good, by ones that look at the setting and call them; they are
put back when the scripts are unloaded. What training itself calls is replaced while a run goes on, and put back after
it in every case:

    dataset.BatchLoader.__init__        remembers which pictures are in the batch
    the model's p_losses                gives t and each sample's loss, as the host's own mean is made of them
    textual_inversion.write_loss        at the end of each step: its rows are written
    LearnRateScheduler                  our schedule, for strings that the host's own parser does not read

`loss.csv` lies beside the host's log and has the columns of a run's (`lib.records`): `step` counts from 0, so the rows
of step s are those of the host's line s + 1, and their mean is the loss there.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ...lib.files import make_folder
from ...lib.lr_schedule import ScheduleError, parse
from ...lib.lr_schedule.parser import Item, PieceItem
from ...lib.records import LOSS_COLUMNS, Table, read_losses
from .patched import patched

SETTING = "atelier_stock_training"
FLUSH_EVERY_STEPS = 10
_ORIGINAL = "atelier_original"
# what the host's parser reads rightly: rates, each with an end in steps or -1; a + means something else to it
_HOSTS_OWN = re.compile(r"\s*[0-9.eE+-]+\s*(:\s*(-1|[0-9]+)\s*)?(,\s*([0-9.eE+-]+\s*(:\s*(-1|[0-9]+)\s*)?)?)*")


def install() -> None:
    """Replace the host's training functions wherever they are known by name; does nothing where it has none."""
    uninstall()
    for module, name in _entries():
        setattr(module, name, _better(getattr(module, name)))


def uninstall() -> None:
    """Put the host's training functions back, also where the host has taken ours over under a name of its own."""
    for module, name in _entries():
        while hasattr(getattr(module, name), _ORIGINAL):
            setattr(module, name, getattr(getattr(module, name), _ORIGINAL))


def _kept() -> dict[str, Any]:
    from .runs import registry

    return registry().wrapped


def _entries() -> Iterator[tuple[Any, str]]:
    # the API holds them by its own names
    for module_name in ("textual_inversion.textual_inversion", "hypernetworks.hypernetwork", "api.api"):
        module = sys.modules.get(f"modules.{module_name}")
        for name in ("train_embedding", "train_hypernetwork"):
            if module is not None and hasattr(module, name):
                yield module, name


def _better(train: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(train)
    def training(*args: Any, **kwargs: Any) -> Any:
        from modules import shared

        if not getattr(shared.opts, SETTING, True) or _is_active():
            return train(*args, **kwargs)
        with watched():
            return train(*args, **kwargs)

    setattr(training, _ORIGINAL, train)
    return training


def _is_active() -> bool:
    return _kept().get("stock_active", False)


@contextmanager
def watched() -> Iterator[StockRecorder]:
    """The host's training writes rows and takes our schedules, inside."""
    from modules import shared
    from modules.hypernetworks import hypernetwork
    from modules.textual_inversion import dataset, textual_inversion

    recorder = StockRecorder()
    model, kept = shared.sd_model, _kept()
    batch_init, data_init = dataset.BatchLoader.__init__, dataset.PersonalizedBase.__init__
    write_loss = textual_inversion.write_loss
    # SDXL has none; the host itself cannot train it
    p_losses = getattr(model, "p_losses", None)
    host_scheduler = textual_inversion.LearnRateScheduler

    def batch_made(self: Any, data: Any) -> None:
        batch_init(self, data)
        recorder.batch([(Path(entry.filename).name, entry.cond_text or "") for entry in data])

    def data_read(self: Any, *args: Any, **kwargs: Any) -> None:
        data_init(self, *args, **kwargs)
        recorder.steps_per_epoch = max(1, len(self) // self.batch_size // self.gradient_step)

    def losses(x_start: Any, cond: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        # here the host has put its own loss in place, the one with weights where those are wanted
        get_loss, rows = model.get_loss, []

        def seen(prediction: Any, target: Any, mean: bool = True) -> Any:
            loss = get_loss(prediction, target, mean=mean)
            # the second one is for the variational bound, whose weight is 0
            if not mean and not rows:
                rows.append(True)
                recorder.losses(t, loss.detach().mean(dim=tuple(range(1, loss.ndim))))
            return loss

        with patched(model, get_loss=seen):
            return p_losses(x_start, cond, t, *args, **kwargs)

    def written(log_directory: Any, filename: Any, step: int, epoch_len: int, values: Any) -> None:
        # the host makes it only where it saves something else too
        make_folder(Path(log_directory))
        write_loss(log_directory, filename, step, epoch_len, values)
        recorder.end_step(Path(log_directory), step - 1, (step - 1) // epoch_len, float(values["learn_rate"]))

    def scheduler(learn_rate: Any, max_steps: int, cur_step: int = 0, verbose: bool = True) -> Any:
        text = str(learn_rate)
        if _HOSTS_OWN.fullmatch(text):
            return host_scheduler(learn_rate, max_steps, cur_step, verbose)
        return StockSchedule(text, max_steps, lambda: recorder.steps_per_epoch, verbose)

    kept["stock_active"] = True
    try:
        with ExitStack() as stack:
            stack.enter_context(patched(dataset.BatchLoader, __init__=batch_made))
            stack.enter_context(patched(dataset.PersonalizedBase, __init__=data_read))
            stack.enter_context(patched(textual_inversion, write_loss=written, LearnRateScheduler=scheduler))
            stack.enter_context(patched(hypernetwork, LearnRateScheduler=scheduler))
            if p_losses is not None:
                stack.enter_context(patched(model, p_losses=losses))
            yield recorder
    finally:
        kept["stock_active"] = False
        recorder.flush()


class StockRecorder:
    """The rows of one run of the host. Values stay on the device until rows are written, every so many steps."""

    def __init__(self) -> None:
        self.steps_per_epoch: int | None = None
        self._batch: list[tuple[str, str]] = []
        self._samples: list[SimpleNamespace] = []
        self._ended: list[tuple[int, int, float, list[SimpleNamespace]]] = []
        self._folder = Path()
        self._table: Table | None = None
        self._failed = False

    def batch(self, pictures: list[tuple[str, str]]) -> None:
        """The pictures, with captions, of the batch that comes next: the host makes one at a time."""
        self._batch = pictures

    def losses(self, t: torch.Tensor, losses: torch.Tensor) -> None:
        """t and loss of each sample of the newest batch, (B,) each."""
        if len(self._batch) == len(losses):
            self._samples.append(SimpleNamespace(pictures=self._batch, t=t.detach(), losses=losses))

    def end_step(self, folder: Path, step: int, epoch: int, rate: float) -> None:
        """The samples since the last step were all of this one; `folder` is the host's log."""
        self._ended.append((step, epoch, rate, self._samples))
        self._samples = []
        self._folder = folder
        if len(self._ended) >= FLUSH_EVERY_STEPS:
            self.flush()

    def flush(self) -> None:
        """Write the rows of the steps that ended. Where that fails it is said, and the host's training goes on."""
        if self._ended and not self._failed:
            try:
                self._write()
            except (OSError, ValueError) as error:
                self._failed = True
                print(f"Atelier writes no further rows of this training: {error}")
        self._ended = []

    def _write(self) -> None:
        if self._table is None:
            self._table = _table(self._folder, self._ended[0][0])
        seed = torch.initial_seed() % 2**63
        for step, epoch, rate, samples in self._ended:
            for part in samples:
                # the one device sync, every FLUSH_EVERY_STEPS steps
                ts, losses = part.t.cpu().tolist(), part.losses.float().cpu().numpy()
                for (name, caption), t, loss in zip(part.pictures, ts, losses, strict=True):
                    sha = hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()[:12]
                    row = (step, epoch, name, sha, int(t), np.float32(loss), np.float32(1), rate, seed)
                    self._table.add(dict(zip(LOSS_COLUMNS, row, strict=True)))
        self._table.write()


class StockSchedule:
    """Our schedule with the face of the host's LearnRateScheduler; a schedule that ends before the run ends it."""

    def __init__(self, text: str, max_steps: int, steps_per_epoch: Callable[[], int | None], verbose: bool) -> None:
        self._schedule, self._max_steps, self._steps_per_epoch = parse(text), max_steps, steps_per_epoch
        self._resolved: Any = None
        # asked for before the data set is known, and replaced before the first step
        self.learn_rate = _first_rate(self._schedule.items)
        self.finished = False
        try:
            self._resolve(None)
        except ScheduleError:
            # with epochs in it, it waits for the data set
            if "ep" not in text.lower():
                raise
        if verbose:
            print(f"Training at the rates of {text}")

    @property
    def end_step(self) -> int:
        return self._max_steps if self._resolved is None else self._resolved.num_steps

    def step(self, step_number: int) -> bool:
        """Take the rate of this step; whether it is another one."""
        if self._resolved is None:
            self._resolve(self._steps_per_epoch())
        if step_number >= self._resolved.num_steps:
            self.finished = True
            return False
        before, self.learn_rate = self.learn_rate, self._resolved.rate(step_number)
        return self.learn_rate != before

    def apply(self, optimizer: torch.optim.Optimizer, step_number: int) -> None:
        """Give the optimizer the rate of this step."""
        self.step(step_number)
        for group in optimizer.param_groups:
            group["lr"] = self.learn_rate

    def _resolve(self, steps_per_epoch: int | None) -> None:
        self._resolved = self._schedule.resolve(self._max_steps, steps_per_epoch, stop_at_end=True)
        self.learn_rate = self._resolved.rate(0)


def _first_rate(items: tuple[Item, ...]) -> float:
    first = items[0]
    return first.start if isinstance(first, PieceItem) else _first_rate(first.items)


def _table(folder: Path, first_step: int) -> Table:
    """loss.csv, gone on with where its last row is of an earlier step; otherwise a new one beside it.

    Training the same name again on the same day begins at step 0 in the same folder, and nobody's rows are cut.
    """
    for number in count(1):
        path = folder / ("loss.csv" if number == 1 else f"loss-{number}.csv")
        table = Table(path, LOSS_COLUMNS)
        if not path.exists():
            return table
        steps = read_losses(path)["step"]
        data = path.read_bytes()
        header = data.index(b"\n") + 1 if b"\n" in data else 0
        if header and (not len(steps) or steps[-1] < first_step):
            # a row that was cut off when the program was ended goes
            table.cut(data.rindex(b"\n") + 1 - header)
            return table
    raise AssertionError("numbers do not end")
