"""One thread for every test: results do not depend on the machine, and small models are fastest so."""

import torch

torch.set_num_threads(1)
