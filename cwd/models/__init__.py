"""Language models of the study; importing this registers "simply" with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from cwd.models.simply import SimplyConfig, SimplyForCausalLM
from cwd.models.zoo import build

__all__ = ["SimplyConfig", "SimplyForCausalLM", "build"]

# exist_ok: a module reload must not fail on its own first registration.
AutoConfig.register("simply", SimplyConfig, exist_ok=True)
AutoModelForCausalLM.register(SimplyConfig, SimplyForCausalLM, exist_ok=True)
