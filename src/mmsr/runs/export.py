"""The agent of a run as a folder that transformers loads.

    mmsr export papermill_runs/big --to agent               # LoRA weights, which name their base
    mmsr export papermill_runs/big --to agent --merge       # the whole model, LoRA added into its weights

Tokenizer, chat template and picture settings go with either, as the agent was trained with them. A base that was in 4
bits is loaded in bf16.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from transformers.utils import cached_file, logging

from mmsr.files import saving
from mmsr.policy import TINY_DIR, list_targets
from mmsr.runs import UsageError
from mmsr.runs.ask import find_agent, load

VIDEO = "video_preprocessor_config.json"  # stock processors of Qwen3-VL read it, for pictures too


def export(run: Path, to: Path, merge: bool) -> str:
    """Write the agent of a run, after GRPO or else SFT, into the folder `to`; returns what was written, in words.

    Raises UsageError for a folder that holds something already, and as `find_agent` and `load` do.
    """
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise UsageError(f"{to} holds something already: give --to a new folder.")
    logging.set_verbosity_error()
    agent = find_agent(run=run)
    size = replace(agent.preset, four_bit=False)
    policy = load(agent._replace(preset=size))
    base, model = str(TINY_DIR) if size.policy == "tiny" else size.policy, policy.model
    base = str(Path(base).resolve()) if Path(base).is_dir() else base
    if merge:
        model = model.merge_and_unload()
    else:
        list_targets(model)
        lora = model.peft_config["default"]
        lora.base_model_name_or_path, lora.revision = base, size.revision
    with saving(to):
        model.save_pretrained(to)
    policy.tokenizer.save_pretrained(to)
    policy.processor.image_processor.save_pretrained(to)
    absent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if video := cached_file(base, VIDEO, revision=size.revision, **absent):
        shutil.copy(video, to / VIDEO)
    return f"{'the whole model' if merge else f'LoRA weights for {base}'}, with {agent.adapter}, written to {to}"
