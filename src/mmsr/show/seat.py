"""The player's seat: you write the turns that a policy would, and the environment answers as it answers a policy.

    Seat(questions[:5], tools, lab.size.prompts, player)        # in a notebook's cell

A turn is text, whatever it holds: what breaks the protocol is refused, and costs reward. At the end of an episode its
reward is shown beside that of the teacher, who plays the same question.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ipywidgets import HTML, Button, HBox, Layout, Textarea, VBox

from mmsr.env import SearchEnv, Tools, Trajectory
from mmsr.protocol import Answer, ImageSearch, Prompts, TextSearch, Turn, render_turn
from mmsr.reward import RewardWeights, score
from mmsr.show.viewer import trajectory_html
from mmsr.task import Asked, Task
from mmsr.teacher import Player

STARTS = {  # of a turn, by the button that writes it
    "search a crop": Turn("I must know whose flag this is.", ImageSearch("the flag on the left")),
    "search the pages": Turn("This is Kenya. I look for its capital.", TextSearch("Kenya capital")),
    "answer": Turn("The page says it.", Answer("Nairobi")),
}


class Seat(VBox):
    """The widget. `env` is the episode at hand; `play` plays what is in `turn`, `next_question` opens another."""

    def __init__(self, questions: Sequence[Asked], tools: Tools, prompts: Prompts, player: Player):
        self.questions, self.tools, self.prompts, self.player = list(questions), tools, prompts, player
        self.place, self.told = -1, []
        self.turn = Textarea(layout=Layout(width="100%", height="5.5rem"))
        self.card, self.results = HTML(), HTML()
        self.buttons = [Button(description=name) for name in (*STARTS, "play the turn", "next question")]
        for button, start in zip(self.buttons, STARTS.values()):
            button.on_click(lambda _, start=start: setattr(self.turn, "value", render_turn(start)))
        self.buttons[-2].on_click(self.play)
        self.buttons[-1].on_click(self.next_question)
        super().__init__([HBox(self.buttons), self.turn, self.results, self.card])
        self.next_question()

    def next_question(self, _: object = None) -> None:
        """Open the next question's episode, after the last the first again."""
        self.place = (self.place + 1) % len(self.questions)
        self.question, self.turn.value = self.questions[self.place], ""
        self.task = Task.of(self.question)
        self.env = self._episode()
        self._show()

    def play(self, _: object = None) -> None:
        """Play the turn that is written; at the episode's end the teacher plays its question, too."""
        ended = bool(self.env.trajectory.end)
        self.env.step(self.turn.value)
        if self.env.trajectory.end and not ended:
            taught = self.player.play(self.question, self.task, self._episode())
            self.told.append(f"{self._scored('you', self.env.trajectory)}  ·  {self._scored('the teacher', taught)}")
        self._show()

    def _episode(self) -> SearchEnv:
        return SearchEnv(self.tools, self.prompts, self.task)

    def _scored(self, name: str, trajectory: Trajectory) -> str:
        return f"{name}: {trajectory.answer or 'no answer'}, reward {score(trajectory, self.task, RewardWeights()):.2f}"

    def _show(self) -> None:
        row = {"trajectory": self.env.trajectory.as_dict(), "question": {"text": self.task.question}}
        if self.env.trajectory.end:
            row["question"] = self.question.as_dict()
        html = escape(trajectory_html(row, self.task.picture))
        self.card.value = f'<iframe sandbox style="width:100%;height:34rem;border:0" srcdoc="{html}"></iframe>'
        self.results.value = "".join(f"<div>{number}. {escape(t)}</div>" for number, t in enumerate(self.told, 1))
