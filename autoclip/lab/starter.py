"""The experiment that `autoclip init` writes; FILE, TARGET and POLICIES stand for what it is told."""

STARTER = """\
# An experiment. It runs as it is:  autoclip run FILE
# Any key can be changed there:     autoclip run FILE optimizer.lr=0.05 clip.policy.percentile=90
# All keys and their allowed values: autoclip schema

name: spirals                   # names the output directory, runs/spirals
task:
  target: "TARGET"
  args: {hidden: 64, corrupted_share: 0.02}     # keyword arguments of the class
optimizer: {kind: sgd, lr: 0.1, momentum: 0.9}  # or adam, adamw, adagrad, rmsprop
steps: 1000
seeds: [0, 1, 2]                # one run each
precision: float32              # or bfloat16, float16
accumulate: 1                   # batches per step
clip:
  mode: norm                    # or value
  on_nonfinite: skip            # or propagate, raise
  policy:                       # what sets the threshold: POLICIES
    kind: loss_aware_quantile   # the default; or a class of your own, my_module:MyPolicy
    percentile: 10              # of the norms; a falling loss lifts the threshold from there, a rising one cuts it
evaluate_every: 250             # steps between validations; null: only at the end
checkpoint_every: 250           # autoclip run FILE --resume continues from there
device: auto                    # or cpu, cuda, cuda:0
log: {layers_every: 50}         # steps between norms by layer
sweep:                          # autoclip sweep FILE compares what stands here, and nothing else reads it
  none: true                    # no clipping
  thresholds: [1.0, 5.0, 10.0]  # fixed
  percentiles: [10, 50, 90]     # each in both forms: frozen after a warm-up, and running
  policies: [{kind: loss_aware_quantile}]
  seeds: [0, 1, 2]
  lr_multipliers: [1, 3, 10]    # instability is judged over these learning rates
"""
