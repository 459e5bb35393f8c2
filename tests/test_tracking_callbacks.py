"""The callbacks of PyTorch Lightning and Hugging Face's Trainer, in real trainings of 50 steps."""

import hashlib
import importlib
import logging
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from landscope.tracking import lightning_callback, trainer_callback

loss = functional.cross_entropy

pytestmark = [
    # Advice and deprecations of the frameworks themselves, about their own code.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def samples(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def fingerprint(model: nn.Module) -> str:
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return content.hexdigest()


def fails(snapshot):
    torch.manual_seed(9)
    with torch.no_grad():
        next(snapshot.model.parameters()).zero_()
    raise RuntimeError("no number today")


def interrupts(snapshot):
    raise KeyboardInterrupt


def settings(**further):
    return {"train": samples(), "measures": ["performance", fails], "every": 10, "budget": None} | further


# --- PyTorch Lightning -----------------------------------------------------------------------------------------------


def fit(package: str, tmp_path, callback=None, accumulate: int = 1, logger: Any = False):
    framework = importlib.import_module(package)

    class Module(framework.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    torch.manual_seed(0)
    module = Module()
    trainer = framework.Trainer(
        max_steps=50,
        accelerator="cpu",
        devices=1,
        logger=logger,
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        default_root_dir=tmp_path,
        callbacks=[] if callback is None else [callback],
    )
    torch.manual_seed(2)
    trainer.fit(module, DataLoader(TensorDataset(*samples()), batch_size=8, shuffle=True))
    assert trainer.global_step == 50
    return fingerprint(module)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_trains_the_same_weights_and_is_measured(package, tmp_path, caplog):
    framework = pytest.importorskip(package)
    logged = []
    callback: Any = lightning_callback(loss, **settings(log=lambda values, step: logged.append(step)))
    assert isinstance(callback, framework.Callback)
    assert callback.__dict__["monitor"] is None
    with caplog.at_level(logging.WARNING, "landscope"):
        watched = fit(package, tmp_path, callback)
    assert watched == fit(package, tmp_path)
    assert logged == [10, 20, 30, 40, 50]
    history = callback.monitor.history
    assert history.where(name="train_loss")["step"] == (10, 20, 30, 40, 50)
    assert history.where(measure="fails")["error"] == ("RuntimeError: no number today",) * 5
    assert len([record for record in caplog.records if "no number today" in record.getMessage()]) == 1


def test_lightning_counts_optimizer_steps_and_logs_to_its_own_loggers(tmp_path):
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    callback = lightning_callback(loss, **settings(measures="performance"))
    fit("lightning.pytorch", tmp_path, callback, accumulate=2, logger=logger)
    assert callback.monitor.history.where(name="train_loss")["step"] == (10, 20, 30, 40, 50)
    logger.save()
    (written,) = tmp_path.rglob("metrics.csv")
    head, *lines = written.read_text().splitlines()
    assert "performance/train_loss" in head
    column = head.split(",").index("step")
    assert {line.split(",")[column] for line in lines} >= {"10", "20", "30", "40", "50"}


def test_lightning_logs_to_the_loggers_of_the_trainer_that_is_training(tmp_path):
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    callback = lightning_callback(loss, **settings(measures="performance", every=25))
    for number in range(2):
        logger = CSVLogger(tmp_path / str(number))
        fit("lightning.pytorch", tmp_path, callback, logger=logger)
        logger.save()
        (written,) = (tmp_path / str(number)).rglob("metrics.csv")
        assert len(written.read_text().splitlines()) == 3  # the head, the 25th and the 50th step


def test_lightning_callback_can_be_copied_into_another_process():
    pytest.importorskip("lightning.pytorch")
    callback = lightning_callback(loss, **settings())
    make, arguments = callback.__reduce__()
    again = make(*arguments)
    assert again.given is callback.given
    assert type(again).__mro__[1:] == type(callback).__mro__[1:]


def test_lightning_is_asked_for_where_it_is_missing(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib, "import_module", _nothing_there)
    with pytest.raises(ImportError, match="pip install lightning"):
        lightning_callback(loss, **settings(measures=fails))


def _nothing_there(name: str):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])


# --- Hugging Face ----------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """What the Trainer expects: inputs by name, a dict with the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(inputs)
        return {"logits": logits} | ({} if labels is None else {"loss": loss(logits, labels)})


def run(tmp_path, callback=None) -> str:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    inputs, labels = samples()
    rows = [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
    torch.manual_seed(0)
    model = Classifier()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=50,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    callbacks = [] if callback is None else [callback]
    transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()
    return fingerprint(model)


def test_the_trainer_trains_the_same_weights_and_is_measured(tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    logged = []
    callback = trainer_callback(loss, **settings(log=lambda values, step: logged.append(step)))
    assert isinstance(callback, transformers.TrainerCallback)
    with caplog.at_level(logging.WARNING, "landscope"):
        watched = run(tmp_path, callback)
    assert watched == run(tmp_path)
    assert logged == [10, 20, 30, 40, 50]
    history = callback.monitor.history
    assert history.where(name="train_loss")["step"] == (10, 20, 30, 40, 50)
    assert history.where(measure="fails")["error"] == ("RuntimeError: no number today",) * 5


def test_an_interrupt_in_a_measure_ends_the_trainer(tmp_path):
    pytest.importorskip("transformers")
    callback = trainer_callback(loss, **settings(measures=interrupts))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback)
    assert callback.monitor.steps == 10


def test_outputs_without_logits_are_refused():
    pytest.importorskip("transformers")

    class Pair(nn.Module):
        def forward(self, inputs):
            return (inputs,)

    callback = trainer_callback(loss, **settings(measures="performance"))
    with pytest.raises(ValueError, match="without logits"):
        callback.on_train_begin(None, type("State", (), {"global_step": 0}), None, model=Pair())


@pytest.mark.docs
def test_the_guides_example_with_an_attention_mask_runs(root, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    guide = (root / "docs/guide.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# sentences\.py\n(.*?)```", guide, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 measurements" in done.stdout
    assert re.search(r"(?m)^10 top_eigenvalue \d", done.stdout)
