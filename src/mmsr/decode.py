"""Generation that remembers: turn by turn, many conversations together, each on its own key-value cache.

    rows = decoder.open([(picture, messages), …], batch_size=64)    # read once; equal prompts are computed once
    texts = decoder.write(rows, limits=[72, …], temperature=0.0, draws=(), batch_size=64)   # one turn of each, greedily
    decoder.read(rows[0], "<information>…</information>")           # what a tool gave back; computed with the next turn

A row keeps its tokens as they were read and as they were generated (nothing is tokenised twice), which of them the
policy wrote, and the log-probabilities of these: all that GRPO learns from. Its cache holds its own tokens alone; rows
of similar length are batched, and padded only while they are. Linear attention (Qwen3.5's) sums what it has read into
one state, and no turn can be taken back from a sum: such a model keeps no cache, and reads its rows anew at each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from mmsr.tools.picture import picture_key

Conversation = tuple[Image.Image, list[dict]]
PICTURES = 128  # whose features are kept
TOGETHER = 16  # pictures that the vision encoder sees at once


@dataclass
class Row:
    """A conversation in tokens: `ids` [T], `written` [T] by the policy or read, `logps` [T] of what it wrote, else 0.

    The first `prompt` tokens are the question's, with positions [3, prompt] in time, height and width; a later token
    stands at its index plus `shift`. `features` [P, hidden] are the picture's; Qwen3-VL's are wider: what is added
    after each of its first layers (DeepStack, arXiv 2406.04334) stands beside them. `cache` [layers, 2, heads, C, size]
    has keys and values of the first C tokens.
    """

    ids: list[int]
    prompt: int
    positions: torch.Tensor
    shift: int
    features: torch.Tensor
    written: list[bool]
    logps: list[float]
    cache: torch.Tensor | None = field(default=None, repr=False)

    @property
    def cached(self) -> int:
        return 0 if self.cache is None else self.cache.shape[3]

    def add(self, ids: Sequence[int], logps: Sequence[float] | None = None) -> None:
        """Append tokens: written ones come with their log-probabilities, read ones without."""
        self.ids += ids
        self.written += [logps is not None] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.ids[length:], self.written[length:], self.logps[length:]
        if self.cached >= length:  # the last token is always left to be computed
            self.cache = self.cache[:, :, :, : length - 1]

    def at(self, start: int, end: int) -> torch.Tensor:
        """Positions [3, end − start] of tokens."""
        late = torch.arange(max(start, self.prompt), max(end, self.prompt)) + self.shift
        return torch.cat([self.positions[:, start:end], late.expand(3, -1)], 1)


def spread(
    rows: Sequence[Row], spans: Sequence[tuple[int, int]], left: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of rows from start to end, side by side: ids and mask [B, W], positions [3, B, W].

    They are padded on the right, or on the left: a running sum must begin with nothing, and end with a token.
    """
    width = max(end - start for start, end in spans)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    positions = torch.zeros(3, len(rows), width, dtype=torch.long)
    for place, (row, (start, end)) in enumerate(zip(rows, spans)):
        own = slice(width - (end - start), None) if left else slice(end - start)
        ids[place, own] = torch.tensor(row.ids[start:end])
        mask[place, own] = 1
        positions[:, place, own] = row.at(start, end)
    return ids, mask, positions


class Slab(DynamicLayer):
    """A layer's keys and values [2, rows, heads, columns, size] with room for all that will come: nothing is copied."""

    def __init__(self, store: torch.Tensor, used: int):
        super().__init__()
        self.store, self.used, self.is_initialized = store, used, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple:
        end = self.used + key_states.shape[2]
        self.store[0, :, :, self.used : end] = key_states
        self.store[1, :, :, self.used : end] = value_states
        self.used = end
        return self.store[0, :, :, :end], self.store[1, :, :, :end]

    def get_seq_length(self) -> int:
        return self.used


@dataclass
class Batch:
    """Rows that write together: their caches, and which columns [B, columns] of them are a row's own tokens."""

    store: torch.Tensor  # [layers, 2, rows, heads, columns, size]
    mask: torch.Tensor
    used: int

    @classmethod
    def of(cls, rows: Sequence[Row], more: int) -> Batch:
        """The caches of rows, with room for `more` tokens."""
        used = max(row.cached for row in rows)
        layers, two, heads, _, size = rows[0].cache.shape
        store = rows[0].cache.new_zeros(layers, two, len(rows), heads, used + more, size)
        mask = torch.zeros(len(rows), used + more, dtype=torch.long, device=store.device)
        for place, row in enumerate(rows):
            store[:, :, place, :, : row.cached] = row.cache
            mask[place, : row.cached] = 1
        return cls(store, mask, used)

    def cache(self) -> Cache:
        """As the model takes it."""
        return Cache(layers=[Slab(layer, self.used) for layer in self.store])

    def extend(self, mask: torch.Tensor) -> torch.Tensor:
        """Take columns for new tokens, a row's own where `mask` [B, W] is 1; returns the whole mask up to there."""
        end = self.used + mask.shape[1]
        self.mask[:, self.used : end] = mask
        self.used = end
        return self.mask[:, :end]

    def keep(self, places: list[int]) -> None:
        """Go on with the rows at these places."""
        self.store, self.mask = self.store[:, :, places], self.mask[places]

    def take(self, place: int) -> torch.Tensor:
        """The cache of one row."""
        return self.store[:, :, place][:, :, :, self.mask[place, : self.used].nonzero()[:, 0]]


class Passing:
    """Like `Batch`, for rows that a model with linear attention reads anew: no row keeps anything of it."""

    def __init__(self, rows: Sequence[Row], config: Any):
        self.states, self.mask = DynamicCache(config=config), torch.zeros(len(rows), 0, dtype=torch.long)

    def cache(self) -> Cache:
        return self.states

    def extend(self, mask: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat([self.mask, mask], 1)
        return self.mask

    def keep(self, places: list[int]) -> None:
        self.mask = self.mask[places]
        self.states.reorder_cache(torch.tensor(places))

    def take(self, place: int) -> None:
        return None


class Decoder:
    """Reads and writes with a model, with LoRA or without, whose weights do not change meanwhile."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}  # <|im_end|> and <|endoftext|>
        self._pictures: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def network(self) -> Any:
        """The model without LoRA's wrapper; LoRA's layers are within."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def sums_up(self) -> bool:
        """Whether what is read is summed into one state, as in linear attention."""
        return "linear_attention" in (getattr(self.network.config.get_text_config(), "layer_types", None) or ())

    # --- reading ------------------------------------------------------------------------------------------------------

    def open(self, conversations: Sequence[Conversation], batch_size: int) -> list[Row]:
        """Conversations in which the policy is to write next; all but the last token of their prompts is computed."""
        render = self.processor.apply_chat_template
        texts = [render(messages, add_generation_prompt=True, tokenize=False) for _, messages in conversations]
        pictures = {id(picture): picture for picture, _ in conversations}
        keys = {number: picture_key(picture) for number, picture in pictures.items()}
        seen = self.see({keys[number]: picture for number, picture in pictures.items()})
        asked = [(text, keys[id(picture)]) for text, (picture, _) in zip(texts, conversations)]
        prompts = {(text, key): self._prompt(text, *seen[key]) for text, key in dict.fromkeys(asked)}
        if not self.sums_up:  # else nothing of it could be kept
            for rows in alike(list(prompts.values()), batch_size, lambda row: row.prompt):
                self._prefill(rows)
        rows = [prompts[key] for key in asked]  # nothing is ever written into a row's cache: equal rows share it
        return [replace(row, ids=[*row.ids], written=[*row.written], logps=[*row.logps]) for row in rows]

    def see(self, pictures: dict[str, Image.Image]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Features [P, hidden] and grid [1, 3] of pictures by key; the encoder is frozen and sees each of them once."""
        missing = [key for key in pictures if key not in self._pictures]
        for keys in alike(missing, TOGETHER, lambda key: pictures[key].size):
            chosen = [pictures[key] for key in keys]
            inputs = self.processor.image_processor(images=chosen, return_tensors="pt").to(self.network.device)
            grids = inputs["image_grid_thw"]
            found = self.network.model.get_image_features(inputs["pixel_values"], grids)
            parts = zip(found.pooler_output, *getattr(found, "deepstack_features", ()))  # of each picture
            self._pictures |= {key: (torch.cat(part, -1), grid[None]) for key, part, grid in zip(keys, parts, grids)}
        found = {key: self._pictures[key] for key in pictures}
        for key in list(self._pictures)[:-PICTURES]:
            del self._pictures[key]
        return found

    def _prompt(self, text: str, features: torch.Tensor, grid: torch.Tensor) -> Row:
        """The row of a prompt; its picture takes as many tokens as it has features."""
        pad = self.processor.image_token
        ids = self.tokenizer(text.replace(pad, pad * len(features)), add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([ids], device=grid.device)
        kinds = (tokens == self.processor.image_token_id).int()
        positions, shift = self.network.model.get_rope_index(tokens, mm_token_type_ids=kinds, image_grid_thw=grid)
        nothing = [False] * len(ids), [0.0] * len(ids)
        return Row(ids, len(ids), positions[:, 0].cpu(), int(shift), features, *nothing)

    def _prefill(self, rows: Sequence[Row]) -> None:
        ids, mask, positions = spread(rows, [(0, row.prompt - 1) for row in rows])
        cache, embeds = DynamicCache(), self.embed(ids, rows)
        self._states(embeds, mask, positions, cache, self.added(ids, rows))
        store = torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
        for place, row in enumerate(rows):
            row.cache = store[:, :, place, :, : row.prompt - 1].clone()

    def read(self, row: Row, observation: str) -> None:
        """Append what a tool gave back, and the opening of the policy's next turn."""
        if row.ids[-1] != self.tokenizer.eos_token_id:  # a turn that was cut off is given its end token
            row.add([self.tokenizer.eos_token_id])
        row.add(self.tokenizer(self._between(observation), add_special_tokens=False)["input_ids"])

    def replace_turn(self, row: Row, text: str) -> None:
        """Replace the last turn, which the policy wrote, with another, which it reads."""
        row.rewind(len(row.ids) - next(i for i, own in enumerate(reversed(row.written)) if not own))
        row.add([*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id])

    def _between(self, observation: str) -> str:
        """What the chat template writes after the end token of a turn, here of an empty one."""
        messages = [{"role": "assistant", "content": ""}, {"role": "tool", "content": observation}]
        whole = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return whole.partition(self.tokenizer.eos_token)[2]

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(
        self, rows: Sequence[Row], limits: Sequence[int], temperature: float, draws: Sequence, batch_size: int
    ) -> list[str]:
        """Write one turn of each row, appended to it; returns the texts.

        A turn ends with its end token or after its limit of tokens. At a temperature above 0, `draws` has a number in
        [0, 1) for each token of each row: what a row writes depends on its own draws, whoever writes beside it.
        """
        starts = [len(row.ids) for row in rows]
        for places in alike(range(len(rows)), batch_size, starts.__getitem__):
            chosen = [draws[place] for place in places] if temperature else []
            self._write([rows[place] for place in places], [limits[place] for place in places], temperature, chosen)
        turns = [row.ids[start:] for row, start in zip(rows, starts)]
        return self.tokenizer.batch_decode(turns, skip_special_tokens=True)

    def _write(self, rows: list[Row], limits: Sequence[int], temperature: float, draws: Sequence) -> None:
        anew, spans = self.sums_up, [(row.cached, len(row.ids)) for row in rows]
        ids, mask, positions = spread(rows, spans, left=anew)
        embeds = self.embed(ids, rows if anew else ())
        batch = Passing(rows, self.network.config) if anew else Batch.of(rows, ids.shape[1] + max(limits))
        cache, last = batch.cache(), mask.shape[1] - 1 - mask.flip(1).argmax(1)
        working = list(range(len(rows)))  # which row is at each place of the batch
        left = list(limits)
        while True:
            states = self._states(embeds, batch.extend(mask.to(batch.mask.device)), positions, cache, {})
            states = states[torch.arange(len(working)), last.to(states.device)]
            draw = [draws[row][limits[row] - left[row]] if left[row] else 0.0 for row in working] if draws else None
            tokens, logps = self._choose(states, temperature, draw)
            for place, (row, token, logp) in enumerate(zip(working, tokens, logps)):
                if left[row]:
                    rows[row].add([token], [logp])
                    left[row] = 0 if token in self.ends else left[row] - 1
                    if not left[row]:
                        rows[row].cache = batch.take(place)
            staying = [place for place, row in enumerate(working) if left[row]]
            if not staying:
                return
            if 4 * len(staying) <= 3 * len(working):  # those that have ended leave
                batch.keep(staying)
                cache, working, tokens = batch.cache(), [working[p] for p in staying], [tokens[p] for p in staying]
            embeds, mask = self.embed(torch.tensor(tokens)[:, None]), torch.tensor([[left[row] > 0] for row in working])
            at = torch.tensor([[len(rows[row].ids) - 1 + rows[row].shift] for row in working])
            positions, last = at.expand(3, -1, -1), torch.zeros(len(working), dtype=torch.long)

    def embed(self, ids: torch.Tensor, rows: Sequence[Row] = ()) -> torch.Tensor:
        """Embeddings [B, W, hidden] of tokens; the pictures in the prompts of `rows`, from their first token on, are
        their features. A picture's token that the policy wrote itself is a token like any other.
        """
        ids = ids.to(self.network.device)
        embeds = self.network.get_input_embeddings()(ids)
        if not rows:
            return embeds
        found = torch.cat([row.features[:, : embeds.shape[-1]] for row in rows]).to(embeds.dtype)
        return embeds.masked_scatter(self._pictured(ids, rows)[:, :, None], found)

    def added(self, ids: torch.Tensor, rows: Sequence[Row]) -> dict[str, Any]:
        """What Qwen3-VL's language model is to add at picture tokens after its first layers; {} for other models."""
        hidden = self.network.get_input_embeddings().embedding_dim
        _, *layers = torch.cat([row.features for row in rows]).split(hidden, -1)
        return {"visual_pos_masks": self._pictured(ids, rows), "deepstack_visual_embeds": layers} if layers else {}

    def _pictured(self, ids: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Where [B, W] tokens of rows, from their first on, are those of their pictures: no others come before."""
        found, own = ids == self.processor.image_token_id, torch.tensor([[len(row.features)] for row in rows])
        return (found & (found.cumsum(1) <= own.to(ids.device))).to(self.network.device)

    def _states(
        self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache, added: dict[str, Any]
    ) -> torch.Tensor:
        """Last hidden states [B, W, hidden]; keys and values go into the cache."""
        device = embeds.device
        return self.network.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            **added,
        ).last_hidden_state

    def _choose(
        self, states: torch.Tensor, temperature: float, draws: Sequence[float] | None
    ) -> tuple[list[int], list[float]]:
        """The next token of each row and its log-probability: the likeliest, or the one that its draw falls on."""
        logps = (self.network.lm_head(states).float() / (temperature or 1.0)).log_softmax(-1)
        if draws is None:
            tokens = logps.argmax(-1)
        else:
            heights = logps.double().exp().cumsum(-1)
            below = torch.tensor(draws, dtype=torch.float64, device=logps.device)[:, None] * heights[:, -1:]
            tokens = torch.searchsorted(heights, below, right=True)[:, 0]
        return tokens.tolist(), logps.gather(1, tokens[:, None])[:, 0].tolist()


def alike(items: Sequence, size: int, length: Callable) -> list[list]:
    """Items of like length, in pieces of at most `size`."""
    ordered = sorted(items, key=length)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
