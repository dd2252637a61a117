"""The protocol: one `<reason>…</reason>`, then exactly one action (paper §3.1). This is the only parser of turns.

    <reason>I must know whose flag this is.</reason>
    <img_search>the flag on the left</img_search>

| action | form |
|---|---|
| TextSearch | `<text_search>query</text_search>` |
| ImageSearch of a described crop | `<img_search>referring expression</img_search>` |
| ImageSearch of a crop by coordinates | `<img_search><img_crop>x1,y1,x2,y2</img_crop></img_search>` |
| ImageSearch of the whole picture | `<img_search><img></img_search>` |
| Answer | `<answer>…</answer>` |

Data building, training, reward and evaluation all read turns with `parse_turn`, and read them only from what the policy
generated. What comes from outside is passed through `sanitise` first, so that a page can neither close its own block
nor speak for the policy.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of a picture, x2 and y2 exclusive

UNABLE = "Unable to answer due to lack of relevant information"  # the paper's form of giving up
TAGS = ("reason", "text_search", "img_search", "img_crop", "img", "answer", "information")
MAX_CONTENT = 2000  # characters of one field; a turn is far shorter
INVISIBLE = {"Cf", "Cc", "Co", "Cs", "Cn"}  # categories of characters that show nothing
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol that show nothing
MOST_MARKS = 30  # on one letter (Unicode's stream-safe format): to sort more of them takes quadratic time


class ProtocolError(ValueError):
    """A turn breaks the protocol; the message says how, in words a policy can act on."""


@dataclass(frozen=True)
class TextSearch:
    """Search the text corpus or the web for `query`."""

    query: str


@dataclass(frozen=True)
class ImageSearch:
    """Search by picture: the crop an expression describes, the crop of a box, or (neither given) the whole picture.

    `box` is in pixels of the picture as the policy sees it, that is, after its processor's resizing.
    """

    expression: str = ""
    box: Box | None = None


@dataclass(frozen=True)
class Answer:
    """The final answer; ends the episode."""

    text: str


@dataclass(frozen=True)
class Prompts:
    """What the policy is told: with the question, after an image search, after a text search, to ground (paper App.).

    `first_turn` holds `{question}`, `locate` holds `{expression}`; `direct` and `rag` are the prompts of the workflows
    that use no protocol, `rag` with `{pages}` as well.
    """

    first_turn: str
    after_image: str
    after_text: str
    locate: str
    direct: str
    rag: str


Action = TextSearch | ImageSearch | Answer


@dataclass(frozen=True)
class Turn:
    """What the policy thought and what it did."""

    reason: str
    action: Action


_TURN = re.compile(
    r"\s*<reason>(?P<reason>[^<>]*)</reason>"
    r"\s*<(?P<tag>text_search|img_search|answer)>(?P<body>.*)</(?P=tag)>\s*",
    re.DOTALL,
)
_CROP = re.compile(r"\s*<img_crop>\s*(\d{1,5})\s*,\s*(\d{1,5})\s*,\s*(\d{1,5})\s*,\s*(\d{1,5})\s*</img_crop>\s*")


def parse_turn(text: str) -> Turn:
    """Read one generated turn. Raises ProtocolError, with what is wrong, for anything but the forms above."""
    match = _TURN.fullmatch(text)
    if match is None:
        raise ProtocolError(_what_is_wrong(text))
    reason, tag, body = match["reason"].strip(), match["tag"], match["body"]
    if is_blank(reason):
        raise ProtocolError("the reason is empty")
    if max(len(reason), len(body)) > MAX_CONTENT:
        raise ProtocolError(f"the turn is too long: at most {MAX_CONTENT} characters a field")
    if tag == "img_search":
        return Turn(reason, _parse_image_search(body))
    content = body.strip()
    if is_blank(content) or re.search(r"[<>]", content):
        raise ProtocolError(f"<{tag}> must hold plain text")
    return Turn(reason, TextSearch(content) if tag == "text_search" else Answer(content))


def _parse_image_search(body: str) -> ImageSearch:
    if body.strip() == "<img>":
        return ImageSearch()
    if crop := _CROP.fullmatch(body):
        x1, y1, x2, y2 = (int(v) for v in crop.groups())
        if x1 >= x2 or y1 >= y2:
            raise ProtocolError("a crop needs x1 < x2 and y1 < y2")
        return ImageSearch(box=(x1, y1, x2, y2))
    expression = body.strip()
    if is_blank(expression) or re.search(r"[<>]", expression):
        raise ProtocolError("<img_search> must hold a description, <img>, or <img_crop>x1,y1,x2,y2</img_crop>")
    return ImageSearch(expression=expression)


def _what_is_wrong(text: str) -> str:
    opened = re.findall(r"<(reason|text_search|img_search|answer)>", text)
    if not text.lstrip().startswith("<reason>"):
        return "a turn starts with <reason>"
    if "</reason>" not in text:
        return "<reason> is not closed"
    if len(opened) < 2:
        return "an action is missing: <text_search>, <img_search> or <answer>"
    if len(opened) > 2:
        return "only one action is allowed in a turn"
    return "the action is not closed, or text stands outside the tags"


def render_turn(turn: Turn) -> str:
    """The text of a turn; `parse_turn(render_turn(turn)) == turn` for every turn whose fields are plain text.

    A space stands before a text that was copied from a page or a question, as it did there: a byte-level BPE then
    writes the same tokens, and the policy copies instead of spelling anew. `parse_turn` strips it.
    """
    action = turn.action
    if isinstance(action, TextSearch):
        body = f"<text_search> {action.query}</text_search>"
    elif isinstance(action, Answer):
        body = f"<answer> {action.text}</answer>"
    elif action.box:
        body = f"<img_search><img_crop>{','.join(map(str, action.box))}</img_crop></img_search>"
    elif action.expression:
        body = f"<img_search> {action.expression}</img_search>"
    else:
        body = "<img_search><img></img_search>"
    return f"<reason>{turn.reason}</reason>\n{body}"


def sanitise(text: str) -> str:
    """Make outside text harmless: no protocol tag and no special token survives, in any spelling.

    Compatibility forms (full-width brackets and letters) are folded, invisible characters dropped, and every angle
    bracket becomes a single guillemet: every special token of a policy has a bracket (`policy.load_processor` checks).
    """
    return visible(text).replace("<", "‹").replace(">", "›")


def visible(text: str) -> str:
    """What can be seen of a text, and its line breaks, in compatibility form (NFKC), in linear time."""
    kept, marks = [], 0
    for char in (part for letter in text for part in unicodedata.normalize("NFKD", letter)):
        if char == "\n" or unicodedata.category(char) not in INVISIBLE:
            marks = marks + 1 if unicodedata.combining(char) else 0
            if marks <= MOST_MARKS:
                kept.append(char)
    return unicodedata.normalize("NFKC", "".join(kept))


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: it has no letter, digit, punctuation mark or symbol."""
    return not any(unicodedata.category(char)[0] in "LNPS" and char not in FILLERS for char in text)


def conversation(template: str, **outside: str) -> list[dict[str, Any]]:
    """The picture and a prompt as the one message a policy is asked with; what fills the prompt is sanitised."""
    text = template.format(**{name: sanitise(value) for name, value in outside.items()})
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def render_observation(text: str, follow_up: str = "") -> str:
    """The block a tool's answer comes back in, with the prompt for the next turn after it. `text` is sanitised."""
    block = f"<information>\n{text}\n</information>"
    return f"{block}\n{follow_up}" if follow_up else block
