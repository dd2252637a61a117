"""Cold start: supervised fine-tuning on the teacher's episodes (paper §4.1), with TRL's SFTTrainer.

LoRA on every linear layer of the language model; vision encoder and projector frozen; the loss covers what the policy
writes and skips prompts and `<information>` (the chat template's generation marks say which is which).

    result = train_sft(policy, examples, pictures, preset, folder, seed)
    policy = load_policy(preset.policy, adapter=folder / "adapter")
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Features, Value
from PIL import Image
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from mmsr.data import Example
from mmsr.policy import Policy, lora_config
from mmsr.presets import Preset
from mmsr.task import Asked
from mmsr.training import MESSAGES, StepCSV, quiet_trainers, train, training_arguments, typed
from mmsr.world.names import invented_name, real_word, spliced_word
from mmsr.world.relations import RELATIONS
from mmsr.world.snapshot import load_world

OTHER_WORDS = 0.8  # share of the rows with other names in which what is asked goes by other words, too
FORMS = ("{}", "{} {}", "{} {} {}", "{} of {}", "{} of the {}")  # of such words


def as_rows(
    examples: Sequence[Example], pictures: Sequence[Image.Image], epochs: int, aliases: float, seed: int
) -> Dataset:
    """Rows as TRL reads them, all epochs in one pass: `messages` with typed parts and an `images` column.

    Every epoch is shuffled anew. `aliases` is the share of rows with searches in which countries go by other names. A
    row keeps its picture's place in `pictures`, and gets the picture when it is read.
    """
    rng = random.Random(f"{seed}/order")
    order = [i for _ in range(epochs) for i in rng.sample(range(len(examples)), len(examples))]
    messages = []
    for i in order:
        rename = examples[i].label == "search_required" and rng.random() < aliases
        row = typed(examples[i].messages)
        messages.append(aliased(row, examples[i].question, rng) if rename else row)
    features = Features({"messages": MESSAGES, "images": [Value("int32")]})
    rows = Dataset.from_dict({"messages": messages, "images": [[i] for i in order]}, features=features)

    def pictured(columns: dict[str, list]) -> dict[str, list]:
        return {"images": [[pictures[i] for i in places] for places in columns["images"]]}

    return rows.with_transform(pictured, columns=["images"], output_all_columns=True)


def aliased(messages: Sequence[dict], question: Asked, rng: random.Random) -> list[dict]:
    """The same (`typed`) conversation with every train country under an invented name, the same one in all its turns.

    The world has 134 train countries: a small policy that meets them again and again learns their names instead of
    learning to copy a name from what it reads (as in the anonymised entities of Hermann et al., arXiv 1506.03340). The
    same goes for what is asked: in OTHER_WORDS of these rows random words stand for the relation, except in a hard
    question, which has to be reworded, and a random word opens the question.
    """
    countries: dict[str, str] = {}
    asked, noun, other = question.text, "", ""
    if rng.random() < OTHER_WORDS:
        asked = re.sub(r"^\w+", _any_word(rng).capitalize(), question.text)
        if question.type != "hard" and (relation := RELATIONS.get(getattr(question, "relation", ""))):
            noun, other = relation.noun, rng.choice(FORMS).format(*(_any_word(rng) for _ in range(3)))

    def rename(text: str) -> str:
        text = text.replace(question.text, asked)
        if noun:
            text = re.sub(noun, lambda found: other.capitalize() if found[0][0].isupper() else other, text, flags=re.I)
        return _train_names().sub(lambda match: countries.setdefault(match.group(), invented_name(rng)), text)

    def renamed(part: dict) -> dict:
        return part | {"text": rename(part["text"])} if part.get("text") else part

    return [message | {"content": [renamed(part) for part in message["content"]]} for message in messages]


def _any_word(rng: random.Random) -> str:
    return rng.choice((real_word, spliced_word))(rng)


@functools.cache
def _train_names() -> re.Pattern[str]:
    names = sorted((country.name for country in load_world().by_split("train")), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")


def sft_config(preset: Preset, folder: Path, seed: int) -> SFTConfig:
    """The paper's settings: cosine, warm-up 0.1; rate, batch and epochs by preset."""
    return SFTConfig(
        **training_arguments(preset, folder, seed, preset.sft_batch),
        num_train_epochs=1,  # the rows hold every epoch
        train_sampling_strategy="sequential",
        learning_rate=preset.sft_lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        assistant_only_loss=True,
        max_length=None,
        data_seed=seed,
    )


def learned_tokens(policy: Policy, example: Example, picture: Image.Image) -> tuple[list[int], list[bool]]:
    """The tokens of an example as the trainer makes them, and which of them bear loss."""
    collate = DataCollatorForVisionLanguageModeling(policy.processor, assistant_only_loss=True)
    batch = collate([{"messages": typed(example.messages), "images": [picture]}])
    return batch["input_ids"][0].tolist(), (batch["labels"][0] != -100).tolist()


def train_sft(
    policy: Policy,
    examples: Sequence[Example],
    pictures: Sequence[Image.Image],
    preset: Preset,
    folder: Path,
    seed: int,
) -> Policy:
    """Train from the base, going on from the last checkpoint if there is one; the adapter lands in `folder/adapter`.

    Raises ValueError where there is nothing to learn from.
    """
    if not examples:
        raise ValueError("there are no examples to learn from: run notebook 01 with more questions")
    quiet_trainers()
    trainer = SFTTrainer(
        model=policy.model,
        args=sft_config(preset, folder, seed),
        train_dataset=as_rows(examples, pictures, preset.sft_epochs, preset.sft_aliases, seed),
        processing_class=policy.processor,
        peft_config=lora_config(preset.lora_r, preset.lora_alpha),
        callbacks=[StepCSV(folder / "sft.csv", anew=True)],
    )
    trainer.model_accepts_loss_kwargs = True  # Qwen's model says no: passes and processes would be averaged, not tokens
    return train(trainer, policy, folder)
