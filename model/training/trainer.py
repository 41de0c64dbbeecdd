"""The training loop: steps, validations and checkpoints of one run."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import TypeVar, cast

import torch
from torch import Tensor

from ...features.device import keep_freed_memory
from ...pipeline.stage.checksums import checksum_of_file, checksums_of
from ...pipeline.stage.command_line import command_of
from ...pipeline.stage.console import ProgressLine, format_seconds, print_note, print_warning
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.manifest import Manifest
from ...pipeline.stage.signals import Stopped, deferred_signals, not_deferred
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import TrainConfig
from ..decoders.base import Decoder
from ..decoders.precision import Precision
from ..decoders.registry import decoder_class
from ..generation.generate import choose_batch_size, decode_captions, iterate_features
from ..generation.options import DecodingOptions
from ..runs.checkpoint import (
    Progress,
    load_checkpoint,
    random_state,
    save_checkpoint,
    save_weights,
)
from ..runs.layout import BEST_NAME, CONFIG_NAME, LAST_NAME, LOG_NAME, VOCAB_NAME
from ..runs.run import RunConfig
from ..runs.run_log import RunLog
from .batches import CaptionBatch, CaptionBatches
from .data import TrainingData
from .distributed import Group
from .initial_weights import make_decoder
from .loss import Share, caption_loss, mix_inputs, whole
from .optim import average_weights, learning_rate_at, make_optimizer
from .resume import require_folder, stopped_by
from .scst import SelfCriticalLoss
from .summary import ADVICE, show_summary, try_to_draw_curves
from .validation import ValidationScorer

VERSION = 1
LOG_EVERY_STEPS = 50
FEW_STEPS = 300

T = TypeVar("T")


class Trainer:
    """One run, from its first step or its last checkpoint to its end.

    Attributes:
        decoder: the weights being trained.
        average: their running mean with `--ema`, else None.
        progress: epochs, steps and best score so far; saved in every checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        run_dir: Path,
        *,
        resume: bool = False,
        group: Group | None = None,
    ) -> None:
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.config, self.data, self.run_dir, self.resume = config, data, run_dir, resume
        self.group = group or Group()
        device = self.group.choose_device(config.device)
        self.precision = Precision(config.precision, device)
        uses_grid = decoder_class(config).uses_grid
        self.batches = CaptionBatches(
            data.store,
            data.captions,
            config.batch_size,
            device,
            grid=uses_grid,
            by_image=uses_grid or config.scst,
            num_views=config.views,
            window=config.window,
            words=data.words,
        )
        self.total_steps = len(self.batches) * config.epochs
        self.decoder = make_decoder(config, data, self.batches, resume=resume).to(device)
        self.group.copy_from_first(self.decoder)
        self.group.draw_differently(config.seed)
        self.average = average_weights(self.decoder, config.ema) if config.ema else None
        self.optimizer = make_optimizer(self.decoder, config)
        self.loss_of = self._make_loss()
        self.scorer = ValidationScorer(data.val_references, config.monitor)
        self.monitor = self.scorer.monitor
        self.progress = Progress()
        self.signals = list[Signals]()  # received during the run
        self.loss = math.nan  # mean over the steps of the last log record

    def run(self) -> Manifest:
        """Train to the end, or until a signal stops the run."""
        config = self.config
        if self.resume:
            self.progress = load_checkpoint(
                self.run_dir / LAST_NAME,
                self.decoder,
                self.optimizer,
                self.precision.scaler,
                self.average,
                self.group.rank,
            )
            self.group.require_equal("The steps of the checkpoint", self.progress)
            self.run_config = RunConfig.read(self.run_dir)
            print_note(f"train: resuming {self.run_dir} at step {self.progress.step:,}.")
        else:
            self.run_config = self.group.first(self._write_config)
        if self.total_steps < FEW_STEPS and not config.scst:
            print_warning(f"the run has only {self.total_steps} steps. {ADVICE}")
        progress = self.progress
        log = None
        if self.group.is_first:
            log = RunLog(self.run_dir, progress.step, progress.log_bytes, progress.log_checksum)
        with log or nullcontext(), deferred_signals() as self.signals:
            if log and not self.resume:
                log.write_options(config.result_options(), f"val_{self.monitor}")
            while progress.epoch < config.epochs and not self._is_out_of_patience():
                self._train_epoch(log)
                self._validate(log)
                self._save_checkpoint(log)
        return self.group.first(self._finish)

    def _make_loss(self) -> Callable[[Decoder, CaptionBatch, Share], Tensor]:
        if not self.config.scst:
            return self._cross_entropy
        return SelfCriticalLoss.load(self.data, self.batches.images, self.config)

    def _cross_entropy(self, decoder: Decoder, batch: CaptionBatch, share: Share = whole) -> Tensor:
        if self.config.scheduled_sampling:
            rate = self.config.scheduled_sampling * (self.progress.step / self.total_steps)
            batch = mix_inputs(decoder, batch, rate)
        loss = caption_loss(decoder, batch, self.config.label_smoothing)
        return loss * share(len(batch.nonpad))

    @property
    def validated(self) -> Decoder:
        """The decoder to validate and keep: the running mean if there is one."""
        return self.decoder if self.average is None else cast(Decoder, self.average.module)

    def _write_config(self) -> RunConfig:
        """Write vocab.json and config.json of a new run."""
        self.data.vocab.write(self.run_dir / VOCAB_NAME)
        run_config = RunConfig(
            dataset=self.config.dataset,
            features=self.data.store.directory.name,
            backbone=self.data.store.backbone,
            vocab_sha256=self.data.vocab.sha256,
            decoder=self.decoder.config,
            train=replace(self.config, resume=False).as_json(),
            inputs=self.data.inputs,
            vocab_checksum=checksum_of_file(self.run_dir / VOCAB_NAME),
        )
        run_config.write(self.run_dir)
        return run_config

    def _train_epoch(self, log: RunLog | None) -> None:
        """Take the steps of an epoch that are left, saving a checkpoint now and then."""
        config, progress = self.config, self.progress
        watch, before_s, saved_s = Stopwatch(), progress.seconds, 0.0
        num_tokens, losses = 0, list[Tensor]()
        label = f"epoch {progress.epoch + 1}/{config.epochs}"
        seed = config.seed * 100_003 + progress.epoch  # another order for each seed and epoch
        self.decoder.train()
        views = self.batches.draw_views(seed)
        with ProgressLine(label, len(self.batches), "steps", start=progress.batch) as line:
            for positions in self.batches.plan_epoch(seed)[progress.batch :]:
                with watch.part("data"):
                    batch, share = self.group.gather_part(self.batches, positions, views)
                lr = learning_rate_at(progress.step, self.total_steps, config)
                losses.append(self._take_step(batch, lr, share))
                progress.step += 1
                progress.batch += 1
                progress.seconds = before_s + watch.seconds
                num_tokens += len(batch.nonpad) * self.group.size
                speed = num_tokens / watch.seconds
                if progress.step % LOG_EVERY_STEPS == 0:
                    self._log_steps(log, losses, lr=lr, tokens_per_second=speed)
                    losses.clear()
                line.advance(1, text=self._describe_step(speed, watch))
                is_due = watch.seconds - saved_s > config.save_every_s
                received, is_any_due = self.group.max(self._signal, is_due)
                if received or is_any_due:
                    saved_s = watch.seconds
                    # A checkpoint with a broken loss would replace a good one.
                    self._require_finite(losses)
                    self._save_checkpoint(log)
                if received:
                    raise stopped_by(Signals(int(received)), self.run_dir, progress.step)
        if losses:
            self._log_steps(log, losses, lr=lr, tokens_per_second=speed)
        progress.epoch, progress.batch = progress.epoch + 1, 0

    def _take_step(self, batch: CaptionBatch, lr: float, share: Share = whole) -> Tensor:
        """Compute the loss of a batch and update the weights.

        Returns:
            The loss, a scalar on the device, detached; of several processes, the batch's loss is
            the sum.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.precision.autocast():
            loss = self.loss_of(self.decoder, batch, share)
        self.precision.scaler.scale(loss).backward()
        self.group.sum_gradients(self.decoder.parameters())
        self.step_optimizer()
        return loss.detach()

    def step_optimizer(self) -> None:
        """Clip the gradients, update the weights, and update their running mean."""
        scaler, optimizer = self.precision.scaler, self.optimizer
        scaler.unscale_(optimizer)
        if self.config.grad_clip:
            parameters = list(self.decoder.parameters())
            torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.decoder)

    def _log_steps(self, log: RunLog | None, losses: list[Tensor], **scalars: float) -> None:
        """Log the mean loss since the last record."""
        self.loss = self._require_finite(losses)
        if isinstance(self.loss_of, SelfCriticalLoss):
            scalars["reward"] = self.group.sum(self.loss_of.take_reward())
        seconds = round(self.progress.seconds, 3)
        if log:
            log.write(self.progress.step, loss=self.loss, **scalars, seconds=seconds)

    def _require_finite(self, losses: list[Tensor]) -> float:
        """Return the mean loss, 0 of none; this waits for the device.

        Raises:
            ShowTellError: the mean is not finite.
        """
        loss = self.group.sum(float(torch.stack(losses).mean()) if losses else 0.0)
        if not math.isfinite(loss):
            raise ShowTellError(
                f"{self.run_dir}: the loss is {loss} at step {self.progress.step}. Train another "
                f"run with a smaller --learning-rate or with --precision fp32."
            )
        return loss

    def _describe_step(self, tokens_per_second: float, watch: Stopwatch) -> str:
        progress = self.progress
        left_s = (self.total_steps - progress.step) * progress.seconds / progress.step
        lr = learning_rate_at(progress.step, self.total_steps, self.config)
        loss = "" if math.isnan(self.loss) else f"loss {self.loss:.3f} | "
        return (
            f"step {progress.step}/{self.total_steps} | {loss}lr {lr:.1e} | "
            f"{tokens_per_second / 1000:.1f}k tok/s | data {watch.shares()['data']:.0%} | "
            f"eta {format_seconds(left_s)}"
        )

    def _validate(self, log: RunLog | None) -> None:
        """Caption the validation images, score them, and keep the weights if they are the best."""
        config, progress, watch = self.config, self.progress, Stopwatch()
        captions, scores = self._score_captions(log)
        progress.seconds += watch.seconds
        if log:
            log.write(
                progress.step,
                epoch=progress.epoch,
                **{f"val_{name}": score for name, score in scores.items()},
                val_seconds=round(watch.seconds, 3),
                seconds=round(progress.seconds, 3),
            )
            log.write_captions(progress.step, self._examples(captions))
        score = scores[self.monitor]
        # As long as every epoch scores 0, the latest has learned the most.
        is_best = score > progress.best_score or score == progress.best_score == 0
        if is_best:
            progress.best_score, progress.best_epoch = score, progress.epoch
            if self.group.is_first:
                require_folder(self.run_dir, self.config)
                save_weights(self.run_dir / BEST_NAME, self.validated, self.run_config)
        shown = dict.fromkeys(("CIDEr", "Bleu_4", self.monitor))
        print_note(
            f"epoch {progress.epoch}/{config.epochs} | loss {self.loss:.3f} | "
            f"val {' | '.join(f'{name} {100 * scores[name]:.1f}' for name in shown)} | "
            f"{format_seconds(progress.seconds)}{' | best' if is_best else ''}"
        )

    def _score_captions(self, log: RunLog | None) -> tuple[list[str], dict[str, float]]:
        """Return the captions of the validation images, and their scores.

        Raises:
            StoppedError: a signal stopped it. A checkpoint is saved.
        """
        progress = self.progress
        parts = self.group.gather(self._interruptible(self.decode_validation))
        scores = None
        if None not in parts:
            captions = [caption for part in parts if part is not None for caption in part]
            score = partial(self.scorer.score, captions)
            scores = self.group.first(partial(self._interruptible, score))
        if scores is None:
            # The epoch is not finished: a resumed run starts with its validation.
            progress.epoch, progress.batch = progress.epoch - 1, len(self.batches)
            self._save_checkpoint(log)
            (received,) = self.group.max(self._signal)
            raise stopped_by(Signals(int(received)), self.run_dir, progress.step)
        return captions, scores

    @property
    def _signal(self) -> int:
        """The first signal that was received during the run; 0 if there was none."""
        return self.signals[0] if self.signals else 0

    def _interruptible(self, function: Callable[[], T]) -> T | None:
        """Return what a function returns; None if a signal stops it before."""
        try:
            with not_deferred(self.signals):
                return function()
        except Stopped:
            return None

    def decode_validation(self) -> list[str]:
        """Caption this process's part of the validation images with the current weights."""
        data, decoder = self.data, self.validated
        options = DecodingOptions(beam=self.config.val_beam, length_penalty=0.0)
        size, options = choose_batch_size(options), options.for_unit(data.vocab.unit)
        rows = data.store.rows(data.val_image_ids).tensor_split(self.group.size)[self.group.rank]
        inputs = iterate_features(decoder, data.store, rows, size, words=data.words)
        batches = decode_captions(decoder, data.vocab, inputs, self.precision, options)
        return [caption for captions in batches for caption in captions]

    def _examples(self, captions: list[str]) -> list[tuple[str, str, str]]:
        """Return file name, caption and a reference of a few validation images."""
        references = [texts[0] for texts in self.data.val_references.values()]
        return [*zip(self.data.val_file_names, captions, references, strict=False)]

    def _is_out_of_patience(self) -> bool:
        epochs_without_gain = self.progress.epoch - self.progress.best_epoch
        return 0 < self.config.patience <= epochs_without_gain

    def _save_checkpoint(self, log: RunLog | None) -> None:
        progress, states = self.progress, self.group.gather(random_state(self.precision.device))
        if log:
            require_folder(self.run_dir, self.config)
            progress.log_bytes, progress.log_checksum = log.sync()
            save_checkpoint(
                self.run_dir / LAST_NAME,
                self.decoder,
                self.optimizer,
                self.precision.scaler,
                progress,
                self.average,
                self.run_config,
                states,
            )
        self.group.gather(None)  # no process continues before the checkpoint is safe

    def _finish(self) -> Manifest:
        """Draw the curves, write the manifest and print a summary."""
        progress, data = self.progress, self.data
        # Before the manifest: if drawing is killed, `--resume` draws again.
        curves = try_to_draw_curves(self.run_dir, self.monitor, progress.best_epoch)
        # Without the last checkpoint: a finished run does not need it.
        outputs = [CONFIG_NAME, VOCAB_NAME, BEST_NAME, LOG_NAME]
        num_parameters = sum(parameter.numel() for parameter in self.decoder.parameters())
        manifest = Manifest(
            stage="train",
            version=VERSION,
            config=self.run_config.train,
            inputs=data.inputs,
            outputs={name: (self.run_dir / name).stat().st_size for name in outputs},
            checksums=checksums_of(self.run_dir, outputs),
            command=command_of("train", replace(self.config, run=self.run_dir.name)),
            counts={
                "num_captions": self.batches.num_captions,
                "num_parameters": num_parameters,
                "num_steps": progress.step,
                "num_epochs": progress.epoch,
                "best_epoch": progress.best_epoch,
            },
            seconds=round(progress.seconds, 3),
            details={self.monitor: progress.best_score, "run": asdict(self.run_config)},
        ).write(self.run_dir)
        show_summary(manifest, self.run_dir, self.monitor, curves)
        return manifest
