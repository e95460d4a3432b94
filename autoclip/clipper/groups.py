"""The parameters of a clipper in groups, each with a policy and a response of its own."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from autoclip.clipper.measured import Measured, group_norms
from autoclip.controller import Controller, Decision, RelearnAfter
from autoclip.gradients import Norms, Source, group_by_parameter, kept_source, named_parameters
from autoclip.policies import Policy
from autoclip.policies.policy import ALL, Phase, Response, Scope
from autoclip.records import clip_rate

MODULE_EVERY = 50
"""Steps between two looks for parameters that a module got since."""


class Groups:
    """The parameters, the group of each, and the controller of every group.

    Args:
        source: a module, parameters, (name, parameter) pairs, parameter groups, or an optimizer.
        policy: of the one group of scope "global"; with other scopes each group has a clone of it.
        scope: "global", "parameter" or "group".
        response: of every controller.
        patterns: for scope "group": group's name -> regular expression searched in the parameters' names; None: the
            parameter groups of the source.
        relearn_after: of every controller.

    Raises:
        ValueError: there are no parameters, or patterns without scope "group".
    """

    def __init__(
        self,
        source: Source,
        policy: Policy,
        scope: Scope,
        response: Response,
        patterns: Mapping[str, str] | None,
        relearn_after: RelearnAfter,
    ) -> None:
        if patterns and scope != "group":
            raise ValueError(f"groups are for scope='group', got scope={scope!r}")
        self.policy = policy
        self.scope = scope
        self.parameters: dict[str, Tensor] = {}
        self.controllers: dict[str, Controller] = {}
        self._response = response
        self._patterns = dict(patterns) if patterns else None
        self._relearn_after = relearn_after
        self._named: list[str] = []
        self._members: dict[str, list[int]] = {}
        self.optimizer = source if isinstance(source, Optimizer) else None
        self._module = source if isinstance(source, Module) else None
        self._calls = 0  # of `refresh`
        self._read(kept_source(source))

    def refresh(self) -> None:
        """Read the parameters again if any were added to, or exchanged in, the optimizer or module they came from.

        A module is looked through at every fiftieth call only, because that takes longer.
        """
        if self.optimizer is not None:
            if self._given != _identities(self.optimizer):
                self._read(self.optimizer)
        elif self._module is not None:
            self._calls += 1
            if self._calls % MODULE_EVERY == 0 and {*map(id, self._module.parameters())} != {
                *map(id, self.parameters.values())
            }:
                self._read(self._module)

    def members(self, names: list[str]) -> dict[str, list[int]]:
        """Group's name -> positions of its parameters among the names; only groups that have any.

        The same object as before, as long as the names are the same: deferred steps keep what they made for it.
        """
        if names != self._named:
            self._named, self._members = names, dict[str, list[int]]()
            for position, name in enumerate(names):
                self._members.setdefault(self._group_of[name], []).append(position)
        return self._members

    def measured(self, gradients: Mapping[str, Tensor], norms: Norms, order: float) -> Measured:
        """The gradients of one step with their norms, group by group.

        Args:
            gradients: by parameter name.
            norms: of those, before clipping.
            order: of the norm.
        """
        if self.scope == "global":
            return Measured(gradients, norms, {ALL: range(len(gradients))}, norms.total, {ALL: norms.value})
        members = self.members(list(gradients))
        totals, values = group_norms(list(members.values()), gradients, norms, order)
        return Measured(gradients, norms, members, totals, dict(zip(members, values, strict=True)))

    def decide(self, norms: Mapping[str, float], total: float, loss: float | None) -> dict[str, Decision]:
        """Ask the policies, which learn; from a step that is not finite they learn nothing.

        Args:
            norms: of each group that has gradients, before clipping.
            total: of all together.
            loss: of the step.
        """
        decisions = {}
        for group, norm in norms.items():
            decisions[group] = self.controllers[group].decide(norm, loss, total)
        return decisions

    def judge_again(
        self, norms: Mapping[str, float], total: float, before: Mapping[str, Decision]
    ) -> dict[str, Decision]:
        """Decide on finite gradients computed again within the same step, at its thresholds; nothing is learned."""
        decisions = {}
        for group, norm in norms.items():
            controller = self.controllers[group]
            decisions[group] = (
                controller.judge_again(norm, total, before[group]) if group in before else controller.judge(norm, total)
            )
        return decisions

    def remove_gradients(self, groups: Collection[str] | None = None) -> None:
        """Take the gradients away from the parameters of some groups, or of all."""
        for name, parameter in self.parameters.items():
            if groups is None or self._group_of[name] in groups:
                parameter.grad = None

    def remaining(self, gradients: Mapping[str, Tensor], removed: Collection[str]) -> list[Tensor]:
        """The gradients that do not belong to the removed groups."""
        return [gradient for name, gradient in gradients.items() if self._group_of[name] not in removed]

    def phase(self, decisions: Collection[Decision]) -> Phase:
        """Phase of the groups that took part in the step (of all, if none did): "warmup" if any is in its warm-up."""
        for one in decisions:
            if one.phase == "warmup":
                return "warmup"
        waiting = not decisions and any(one.policy.phase == "warmup" for one in self.controllers.values())
        return "warmup" if waiting else "active"

    @property
    def threshold(self) -> float | dict[str, float]:
        """Threshold of the next step: a float for scope "global", else group's name -> threshold."""
        if self.scope == "global":
            return self.policy.threshold()
        return {name: one.policy.threshold() for name, one in self.controllers.items()}

    @property
    def clip_rates(self) -> dict[str, float]:
        """Group's name -> share of its own active steps in which it was clipped; NaN before the first."""
        return {name: clip_rate(one.clipped_steps, one.active_steps) for name, one in self.controllers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Group's name -> state of its controller."""
        self.refresh()
        return {name: one.state_dict() for name, one in self.controllers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` of the same policy and the same groups.

        Raises:
            ValueError: the state is of another policy, or of other groups. Nothing is changed.
        """
        self.refresh()
        if differing := sorted(state.keys() ^ self.controllers.keys()):
            raise ValueError(
                f"the state is of other groups than this Clipper's; not in both: {', '.join(differing[:5])}"
            )
        # First into copies, so that nothing changes if one of the states does not fit.
        copies = {name: self._controller(self.policy.clone()) for name in self.controllers}
        for controllers in (copies, self.controllers):
            for name, controller in controllers.items():
                controller.load_state_dict(state[name])

    def _read(self, source: Source) -> None:
        known = {id(parameter): self.controllers.get(name) for name, parameter in self.parameters.items()}
        self.parameters = named_parameters(source)
        if not self.parameters:
            raise ValueError("the source holds no parameters: nothing can be clipped")
        self._given = _identities(self.optimizer) if self.optimizer else []
        self._named = []
        self._group_of = group_by_parameter(source, self.parameters, self.scope, self._patterns)
        kept: dict[str, Controller] = {}
        if self.scope == "parameter":  # a further group can give the others new names
            kept = {name: found for name, one in self.parameters.items() if (found := known.get(id(one)))}
        renamed = {*map(id, kept.values())}
        kept = {name: one for name, one in self.controllers.items() if id(one) not in renamed} | kept
        self.controllers = {
            name: kept.get(name) or self._controller(self.policy if self.scope == "global" else self.policy.clone())
            for name in dict.fromkeys(self._group_of.values())
        }

    def _controller(self, policy: Policy) -> Controller:
        return Controller(policy, self._response, self._relearn_after)


def _identities(optimizer: Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
