"""TRL's trainers with the Transformers callback, with and without LoRA adapters of PEFT; and LoRA in a plain loop."""

import gc
import os
from math import inf, isfinite, sqrt

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import autoclip

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

from autoclip.integrations.transformers import AutoClipCallback  # noqa: E402 - not without transformers
from autoclip.records import Sink  # noqa: E402

WORDS = ["[pad]", "[end]", *"abcdefghijklmnopqrstuvwxyz"]
STEPS, SAVED = 12, 6

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks, on the settings of a toy run


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Leave what was imported out of the garbage collections that every training begins with, which are slow."""
    gc.freeze()
    yield
    gc.unfreeze()


def tokenizer():
    """One token a letter."""
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[end]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[pad]", eos_token="[end]")  # noqa: S106


def language_model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = transformers.LlamaConfig(vocab_size=len(WORDS), **size, **special, initializer_range=0.3)
    return transformers.LlamaForCausalLM(config)


def sentences(column):
    random = torch.Generator().manual_seed(0)
    letters = [[WORDS[2 + i] for i in torch.randint(0, 26, (length,), generator=random)] for length in [5, 9, 7] * 16]
    return datasets.Dataset.from_dict({column: [" ".join(one) for one in letters]})


def lora():
    torch.manual_seed(1)
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def share_of_vowels(completions, **columns):
    return [sum(text.count(vowel) for vowel in "aeiou") / (len(text) + 1) for text in completions]


def always_one(completions, **columns):
    """No completion is better than another: no advantages, so no gradient."""
    return [1.0] * len(completions)


def usual(directory):
    return {
        "output_dir": str(directory),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": SAVED,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def sft(directory, callback, adapter=None, **changes):
    return trl.SFTTrainer(
        language_model(),
        trl.SFTConfig(**{**usual(directory), "max_length": 16, **changes}),
        train_dataset=sentences("text"),
        processing_class=tokenizer(),
        peft_config=adapter,
        callbacks=[callback],
    )


def grpo(directory, callback, adapter=None, rewards=share_of_vowels, **changes):
    return trl.GRPOTrainer(
        language_model(),
        rewards,
        trl.GRPOConfig(**{**usual(directory), "num_generations": 4, "max_completion_length": 6, **changes}),
        train_dataset=sentences("prompt"),
        processing_class=tokenizer(),
        peft_config=adapter,
        callbacks=[callback],
    )


class Records(Sink):
    """A sink, and the norms that reach the optimizer."""

    def __init__(self):
        self.all, self.left = [], []

    def log(self, record):
        self.all.append(record)

    def look(self, optimizer, args, kwargs):
        given = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        self.left.append(sqrt(sum(float(one.double().square().sum()) for one in given)))


def policy():
    return autoclip.RunningQuantile(percentile=25, warmup_steps=3)


def trained(make, directory, adapter=None, rule=None, checkpoint=None, **changes):
    """A trained trainer without its printing, its callback's records, and the norms that reached the optimizer."""
    records = Records()
    trainer = make(directory, AutoClipCallback(rule or policy(), sinks=[records]), adapter, **changes)
    trainer.remove_callback(transformers.PrinterCallback)
    handle = register_optimizer_step_pre_hook(records.look)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        handle.remove()
    return trainer, records


def logged(trainer):
    """What training logged, without times and the number of tokens, which TRL counts from the start of each call."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [
        {name: value for name, value in entry.items() if name not in {"step_time", "num_tokens"}} for entry in entries
    ]


MAKERS = pytest.mark.parametrize("make", [sft, grpo], ids=["sft", "grpo"])
ADAPTERS = pytest.mark.parametrize("adapter", [None, lora], ids=["whole", "lora"])


@ADAPTERS
@MAKERS
def test_every_step_of_trl_is_left_within_its_threshold(tmp_path, make, adapter):
    trainer, records = trained(make, tmp_path, adapter and adapter())
    assert [record.step for record in records.all] == list(range(STEPS))
    assert sum(record.clipped for record in records.all) >= 3
    for record, left in zip(records.all, records.left, strict=True):
        assert left <= record.threshold * (1 + 1e-6)
        assert left == pytest.approx(record.total_norm * record.coefficient, rel=1e-5)
    learning = [name for name, one in trainer.model.named_parameters() if one.requires_grad]
    assert len(learning) == (8 if adapter else 21)
    assert all("lora" in name for name in learning) is bool(adapter)


@MAKERS
def test_trl_logs_the_norm_before_clipping_of_the_latest_step_and_its_threshold(tmp_path, make):
    trainer, records = trained(make, tmp_path, save_strategy="no")
    for record, entry in zip(records.all, logged(trainer), strict=True):
        assert entry["grad_norm"] == entry["autoclip/total_norm"] == record.total_norm
        assert entry.get("autoclip/threshold", inf) == record.threshold
        assert record.loss == pytest.approx(entry["loss"], rel=1e-5, abs=1e-6)
    assert sum("autoclip/threshold" in entry for entry in logged(trainer)) >= STEPS - 1


def test_trl_logs_the_latest_norm_and_not_the_mean_since_the_last_entry(tmp_path):
    trainer, records = trained(sft, tmp_path, save_strategy="no", logging_steps=4)
    entries = logged(trainer)
    assert [entry["grad_norm"] for entry in entries] == [one.total_norm for one in records.all[3::4]]
    means = [sum(one.loss for one in records.all[i : i + 4]) / 4 for i in range(0, STEPS, 4)]
    assert [entry["loss"] for entry in entries] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "adapter", "rule"),
    [(sft, None, policy()), (sft, lora, autoclip.ProbingQuantile()), (grpo, lora, policy())],
)
def test_a_resumed_trl_training_is_the_uninterrupted_one(tmp_path, make, adapter, rule):
    adapted = {"adapter": adapter and adapter(), "rule": rule}
    whole, records = trained(make, tmp_path, **adapted)
    resumed, rest = trained(make, tmp_path, **adapted, checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    assert rest.all == records.all[SAVED:]
    assert rest.left == records.left[SAVED:]
    assert logged(resumed) == logged(whole)
    assert len(logged(whole)) == STEPS
    weights = resumed.model.state_dict()
    assert [name for name, value in whole.model.state_dict().items() if not torch.equal(value, weights[name])] == []


@pytest.mark.parametrize("rule", [autoclip.ProbingQuantile(), autoclip.LossAwareQuantile()], ids=["probing", "aware"])
def test_grpo_steps_without_advantages_between_others_leave_the_thresholds_alone(tmp_path, rule):
    """In the other steps the loss of GRPO has either sign: it is no measure of progress."""
    calls = []

    def now_and_then(completions, **columns):
        calls.append(len(completions))
        return always_one(completions) if len(calls) % 3 == 0 else share_of_vowels(completions)

    _, records = trained(grpo, tmp_path, rule=rule, rewards=now_and_then, save_strategy="no", max_steps=24)
    quiet = [record for record in records.all if record.total_norm == 0]
    assert len(calls) == 24
    assert [record.step for record in quiet] == list(range(2, 24, 3))
    thresholds = [record.threshold for record in records.all]
    assert len({*thresholds}) >= 8  # other steps change it
    for record in quiet[:-1]:
        assert not record.clipped
        assert thresholds[record.step + 1] == record.threshold
    assert min(record.loss for record in records.all) < 0 < max(record.loss for record in records.all)
    assert all(isfinite(one) and one > 0 for one in thresholds)
    assert min(record.coefficient for record in records.all) > 0.01


def test_a_configuration_like_those_of_axolotl(tmp_path):
    """LoRA in bf16, packed sequences, recomputed activations, a schedule with a warm-up."""
    packed = {"packing": True, "max_length": 32, "pad_to_multiple_of": 8}
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.01, "optim": "adamw_torch_fused"}
    memory = {"bf16": True, "gradient_checkpointing": True, "max_grad_norm": 1.0}
    _, records = trained(sft, tmp_path, lora(), **packed, **schedule, **memory, save_strategy="no")
    assert len(records.all) == STEPS
    assert sum(record.clipped for record in records.all) >= 3
    for record, left in zip(records.all, records.left, strict=True):
        assert left <= record.threshold * (1 + 1e-6)


def adapted(seed):
    torch.manual_seed(seed)
    model = peft.get_peft_model(language_model(), lora())
    learning = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    return model, optimizer, autoclip.attach(optimizer, policy())


def test_lora_in_a_plain_loop_clips_the_adapters_alone_and_resumes(tmp_path):
    tokens = torch.randint(2, len(WORDS), (STEPS, 4, 9), generator=torch.Generator().manual_seed(2))

    def train(model, optimizer, clipper, steps):
        seen = []
        for step in steps:
            optimizer.zero_grad()
            loss = model(input_ids=tokens[step], labels=tokens[step]).loss
            loss.backward()
            clipper.report_loss(loss)
            optimizer.step()
            given = [one.grad for group in optimizer.param_groups for one in group["params"]]
            left = float(torch.nn.utils.get_total_norm(given))
            assert left <= clipper.last.threshold * (1 + 1e-6)
            seen.append(clipper.last)
        return seen

    model, optimizer, clipper = adapted(0)
    first = train(model, optimizer, clipper, range(SAVED))
    state = {"optimizer": optimizer.state_dict(), "clipper": clipper.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    model.save_pretrained(tmp_path / "adapter")
    rest = train(model, optimizer, clipper, range(SAVED, STEPS))
    assert sum(record.clipped for record in first + rest) >= 3

    again, optimizer, clipper = adapted(7)
    adapter = peft.load_peft_weights(str(tmp_path / "adapter"))
    peft.set_peft_model_state_dict(again, adapter)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    clipper.load_state_dict(state["clipper"])
    assert train(again, optimizer, clipper, range(SAVED, STEPS)) == rest
