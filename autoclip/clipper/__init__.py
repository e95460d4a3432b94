"""The clipper.

Read in this order:

clipper.py         the public face: `Clipper`
step.py            one step, from the gradients to the record
groups.py          whose gradients make one norm, and the controller of each group
measured.py        norms group by group, and the decisions carried out on the tensors
checks.py          a second call in the same step; mistakes of the first three steps
losses.py          the loss of a step: micro-batches and ranks
clip_function.py   somebody else's clip function
deferred.py        steps without a host wait, and CUDA graphs; thresholds.py holds their thresholds on the device, and
                   found_inf.py leaves out a step there
attach.py          the clipper as a hook of an optimizer
options.py         types of the choices; uncompiled.py keeps autograd and the compiler out
"""

from autoclip.clipper.clipper import Clipper

__all__ = ["Clipper"]
