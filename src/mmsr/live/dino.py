"""Grounding DINO as grounder, as in the paper (§3.2), through transformers.

    DinoGrounder()                          # IDEA-Research/grounding-dino-tiny from the hub, 172M parameters
    DinoGrounder(model, processor)          # any GroundingDinoForObjectDetection

The best box above the threshold is widened by a tenth of its side on each side, to at least 64 pixels, and lies inside
the picture; what would stick out is moved in. Where nothing is found, the whole picture is searched.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoProcessor
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from mmsr.live.door import short
from mmsr.protocol import Box
from mmsr.tools.base import FatalToolError, Grounder
from mmsr.tools.ground import clamp, pad
from mmsr.tools.picture import picture_key

MODEL = "IDEA-Research/grounding-dino-tiny"
REVISION = "a2bb814dd30d776dcf7e30523b00659f4f141c71"
THRESHOLD = 0.25  # of a box's best token; transformers' default
PADDING = 0.1
SMALLEST = 64  # pixels of a crop's side, where the picture has as many


def load_dino(name: str = MODEL, revision: str | None = REVISION) -> tuple[Any, GroundingDinoProcessor]:
    """The detector, on the GPU if there is one, and its processor. Raises OSError where the hub cannot be reached."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GroundingDinoForObjectDetection.from_pretrained(name, revision=revision).to(device).eval()
    # The PIL picture processor, whether or not torchvision is installed: boxes must not depend on that.
    pictures = GroundingDinoImageProcessorPil.from_pretrained(name, revision=revision)
    return model, GroundingDinoProcessor(pictures, AutoTokenizer.from_pretrained(name, revision=revision))


class DinoGrounder(Grounder):
    """Boxes by Grounding DINO; each expression has one box per picture, which is kept."""

    def __init__(self, model: Any = None, processor: Any = None, threshold: float = THRESHOLD) -> None:
        """Raises FatalToolError where no model is given and the hub's cannot be had."""
        try:
            self.model, self.processor = (model, processor) if model is not None else load_dino()
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            remedy = "go online once, so that it is downloaded, or leave grounder=dino out"
            raise FatalToolError(f"Grounding DINO cannot be loaded ({short(str(error))}): {remedy}.") from None
        self.threshold = threshold
        self._boxes: dict[tuple[str, str], Box | None] = {}

    def locate(self, picture: Image.Image, expression: str) -> Box | None:
        """The box in pixels of the picture, or None where nothing is found."""
        key = (picture_key(picture), expression)
        if key not in self._boxes:
            found = self._detect(picture.convert("RGB"), as_caption(expression))
            self._boxes[key] = enlarge(found, picture) if found else None
        return self._boxes[key]

    @torch.no_grad()
    def _detect(self, picture: Image.Image, caption: str) -> Box | None:
        if not caption:
            return None
        longest = {"truncation": True, "max_length": self.model.config.max_text_len}
        inputs = self.processor(images=picture, text=caption, return_tensors="pt", **longest).to(self.model.device)
        [found] = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), inputs["input_ids"], threshold=self.threshold, target_sizes=[picture.size[::-1]]
        )
        if not len(found["scores"]):
            return None
        best = found["boxes"][found["scores"].argmax()].tolist()
        return clamp(tuple(round(v) for v in best), picture)


def as_caption(expression: str) -> str:
    """An expression as Grounding DINO was trained to read it: one phrase, in lower case, ended by a full stop."""
    words = expression.lower().replace(".", " ").split()
    return " ".join(words) + "." if words else ""


def enlarge(box: Box, picture: Image.Image) -> Box:
    """A box padded by PADDING of its sides and grown about its middle to SMALLEST pixels a side, inside the picture."""
    x1, y1, x2, y2 = pad(box, PADDING, picture)
    (x1, x2), (y1, y2) = _grown(x1, x2, picture.width), _grown(y1, y2, picture.height)
    return x1, y1, x2, y2


def _grown(low: int, high: int, limit: int) -> tuple[int, int]:
    least = max(high - low, min(SMALLEST, limit))
    start = min(max(0, (low + high - least) // 2), limit - least)
    return start, start + least
