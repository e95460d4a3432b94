"""Trainings under DeepSpeed, of which each of some processes tells in plain numbers what its steps were."""

import os
import warnings
from contextlib import contextmanager
from dataclasses import asdict

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["DEEPSPEED_LOG_LEVEL"] = "error"

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn
from torch.nn.functional import mse_loss

import autoclip
from autoclip.integrations.deepspeed import attach
from tests.distributed import worker
from tests.small_network import Kept as Records

STEPS, HALF, BROKEN = 30, 15, 6
ROWS = 32

# Else the first start compiles it, which takes minutes and a compiler. Gloo does the same.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(step):
    """One batch in eleven has targets that are fifty times too large."""
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True) * (50 if step % 11 == 7 else 1)


def adam(net):
    return torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)


def policy(accumulate=1):
    """The first reads the loss."""
    if accumulate == 1:
        return autoclip.LossAwareQuantile(warmup_steps=5)
    return autoclip.RunningQuantile(percentile=50, warmup_steps=5)


def told(records):
    return [asdict(record) for record in records]


def plain(rule):
    """What a loop without DeepSpeed does, on whole batches."""
    net = network()
    optimizer, clipper = adam(net), autoclip.Clipper(net, rule, process_group=None)
    records = []
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = mse_loss(net(x), y)
        loss.backward()
        clipper.step(loss=loss)
        optimizer.step()
        records.append(clipper.last)
    return {"records": told(records), "weights": [one.flatten().tolist() for one in net.parameters()]}


def engine_of(stage, accumulate=1, prepare=None, **config):
    net = network()
    optimizer = adam(net)
    if prepare is not None:
        prepare(optimizer)
    config = {
        "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size() // accumulate,
        "gradient_accumulation_steps": accumulate,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        **config,
    }
    return deepspeed.initialize(model=net, optimizer=optimizer, config=config)[0]


def train(engine, steps, accumulate=1, broken=None):
    """Train on this rank's rows of each batch."""
    for step in steps:
        x, y = (one[dist.get_rank() :: dist.get_world_size()] for one in batch(step))
        if step == broken:
            x = x * float("nan")
        for part in range(accumulate):
            dtype = next(engine.module.parameters()).dtype
            found = engine(x[part::accumulate].to(dtype))
            engine.backward(mse_loss(found.float(), y[part::accumulate]))
            engine.step()
        yield


def weights(engine):
    if not engine.zero_optimization():
        return [one.detach().float().flatten().tolist() for one in engine.module.parameters()]
    return [safe_get_full_fp32_param(one).flatten().tolist() for one in engine.module.parameters()]


def equal_to_plain(stage, accumulate, directory, **config):
    """A training, and the same interrupted in the middle: continued by an engine that loads a checkpoint."""
    engine = engine_of(stage, accumulate, **config)
    records = Records()
    tuner = attach(engine, policy(accumulate), sinks=[records])
    kept = []
    for step, _ in enumerate(train(engine, range(STEPS), accumulate), 1):
        kept.append(tuner.last)
        if step == HALF:
            engine.save_checkpoint(str(directory), client_state={"mine": 1})
    clip_rate, end = tuner.clip_rate, weights(engine)
    tuner.detach()
    resumed_engine = engine_of(stage, accumulate, **config)
    resumed = attach(resumed_engine, policy(accumulate))
    client = resumed_engine.load_checkpoint(str(directory))[1]
    resumed_records = [resumed.last for _ in train(resumed_engine, range(HALF, STEPS), accumulate)]
    return {
        "records": told(kept),
        "in the sink": len(records.all),
        "weights": end,
        "resumed records": told(resumed_records),
        "resumed weights": weights(resumed_engine),
        "clip rates": [clip_rate, resumed.clip_rate],
        "mine": client["mine"],
        "left on the engine": [name for name in ("step", "backward", "save_checkpoint") if name in vars(engine)],
        "clip_grad after": getattr(engine.optimizer, "clip_grad", None),
    }


@contextmanager
def warned():
    messages = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(one.message) for one in caught if "said once" in str(one.message)]


def with_a_broken_batch(stage, **config):
    """The weights before and after the batch of NaN, the record of each step, and what was warned of."""
    engine = engine_of(stage, **config)
    tuner = attach(engine, autoclip.RunningQuantile(percentile=50, warmup_steps=4))
    kept, at = [], []
    with warned() as messages:
        for _ in train(engine, range(12), broken=BROKEN):
            kept.append(tuner.last)
            at.append(weights(engine))
    kept = [None if one is None else asdict(one) for one in kept]
    return {
        "records": kept,
        "unchanged": at[BROKEN - 1] == at[BROKEN],
        "warned": messages,
        "skipped": tuner.skipped_steps,
        "overflows": engine.skipped_steps,
    }


def message_of(given, rule, **options):
    try:
        attach(given, rule, **options)
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing"


def attached_before(stage):
    """What a step says of an optimizer that had a clipper before DeepSpeed took it."""
    try:
        for _ in train(engine_of(stage, prepare=autoclip.attach), [0]):
            pass
    except RuntimeError as error:
        return str(error)
    return "nothing"


def refused():
    """What `attach` says to what it cannot do."""
    engine = engine_of(1)
    attached = engine_of(1)
    attach(attached)
    no_norm = {"gradient_clipping": 0.0, "zero_optimization": {"stage": 1, "compute_grad_norm": False}}
    tries = {
        "no engine": (engine.module, None, {}),
        "optimizer": (engine.optimizer, None, {}),
        "twice": (attached, None, {}),
        "auto": (engine_of(1, gradient_clipping="auto"), None, {}),
        "no norm": (engine_of(1, **no_norm), None, {}),
        "skips": (engine, autoclip.SkipStep(), {}),
        "reciprocal": (engine, autoclip.ZClip(), {}),
        "parameter": (engine, autoclip.AdaGC(), {}),
        "mode": (engine, None, {"mode": "agc"}),
        "scope": (engine, None, {"scope": "parameter"}),
        "norm_type": (engine, None, {"norm_type": 1.0}),
        "policy": (engine, 1.0, {}),
    }
    if get_accelerator().is_fp16_supported():
        tries["fp16"] = engine_of(0, fp16={"enabled": True}), None, {}
    said = {name: message_of(given, rule, **options) for name, (given, rule, options) in tries.items()}
    try:
        autoclip.attach(engine.optimizer)
    except ValueError as error:
        said["autoclip.attach"] = str(error)
    for stage in range(4):
        said[f"attached before, ZeRO {stage}"] = attached_before(stage)
    attach(engine, autoclip.ZClip(), response="scale").detach()  # none of the refusals has left anything on it
    return said


def engines(directory):
    """Everything that needs engines alone."""
    found = {"plain": plain(policy()), "plain, accumulated": plain(policy(2))}
    for stage in range(4):
        found[f"ZeRO {stage}"] = equal_to_plain(stage, 1, directory / f"{stage}-1", gradient_clipping=0.7)
        found[f"ZeRO {stage}, accumulated"] = equal_to_plain(stage, 2, directory / f"{stage}-2")
        found[f"ZeRO {stage}, bf16"] = with_a_broken_batch(stage, bf16={"enabled": True})
        found[f"ZeRO {stage}, fp32, broken"] = with_a_broken_batch(stage)
        if stage and get_accelerator().is_fp16_supported():  # not on every CPU
            fp16 = {"enabled": True, "initial_scale_power": 18}
            found[f"ZeRO {stage}, fp16"] = with_a_broken_batch(stage, fp16=fp16)
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    options = {"zero_optimization": offload, "zero_force_ds_cpu_optimizer": False}
    found["offload"] = equal_to_plain(2, 1, directory / "offload", **options)
    wide = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    found["ZeRO 1, bf16, fp32 gradients"] = with_a_broken_batch(1, **wide)
    found["ZeRO 2, bf16, taken"] = with_a_broken_batch(2, bf16={"enabled": True, "check_grad_overflow": False})
    found["refused"] = refused()
    return found


def autocasts():
    """Last, because later engines of this process inherit the autocast."""
    casts = {dtype: {"torch_autocast": {"enabled": True, "dtype": dtype}} for dtype in ("bfloat16", "float16")}
    found = {dtype: with_a_broken_batch(0, **config) for dtype, config in casts.items()}
    return {**found, "refused": message_of(engine_of(2, **casts["float16"]), None)}


def work(rank, ranks):
    from tests.integrations import deepspeed_trainers as trainers  # which imports DeepSpeed its own way

    directory = worker.arguments().output
    return {
        "engines": engines(directory / "engines"),
        "accelerate": trainers.all_of_accelerate(directory / "accelerate"),
        "transformers": trainers.all_of_transformers(directory / "transformers"),
        "lightning": trainers.all_of_lightning(directory / "lightning", ranks),
        "autocast": autocasts(),
    }


if __name__ == "__main__":
    worker.run(work)
