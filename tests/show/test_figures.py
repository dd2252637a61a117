"""Every figure of a run is drawn from its files alone, is not blank, and shows the numbers of those files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sample_run import eval_rows, hostile_trajectory, trajectory, write_csv, write_run

from mmsr.evaluate import HABITS
from mmsr.results import CROPS, WORKFLOWS, read_metrics
from mmsr.reward import SUPPORT
from mmsr.show import figures
from mmsr.show.charts import TEXTS, running_mean
from mmsr.show.figures import sample
from mmsr.show.look import ACCENT, WORDS
from mmsr.show.look import words as word
from mmsr.show.pictures import draw_trajectory, gallery, save, scenes, side_by_side, wrap
from mmsr.show.transcript import picture_of
from mmsr.stats import Interval
from mmsr.task import HALVES, FileQuestion
from mmsr.world.questions import TYPES, make_questions

NEEDS = {
    "funnel": ("data/card.json", "01_build_data.ipynb"),
    "sft_curve": ("sft/sft.csv", "02_sft.ipynb"),
    "grpo_curves": ("grpo/grpo.csv", "03_grpo.ipynb"),
    "choice": ("metrics.json", "03_grpo.ipynb"),
    "workflows": ("metrics.json", "04_evaluate.ipynb"),
    "by_type": ("eval/rows.jsonl", "04_evaluate.ipynb"),
    "halves": ("metrics.json", "04_evaluate.ipynb"),
    "habits": ("metrics.json", "04_evaluate.ipynb"),
    "search_behaviour": ("eval/rows.jsonl", "04_evaluate.ipynb"),
    "crops": ("metrics.json", "05_crop_ablation.ipynb"),
    "crops_by_flags": ("ablation/rows.jsonl", "05_crop_ablation.ipynb"),
    "sweeps": ("ablation/sweeps.jsonl", "05_crop_ablation.ipynb"),
}
ALL = [getattr(figures, name) for name in NEEDS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "made-up")


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("figures")))


def words(figure: Figure) -> str:
    """All text of a figure."""
    axes = [text for ax in figure.axes for text in (*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels())]
    titles = [ax.get_title(loc) for ax in figure.axes for loc in ("left", "center", "right")]
    return "\n".join([text.get_text() for text in (*figure.texts, *axes)] + titles)


def drawn(figure: Figure) -> list[Text]:
    """Texts that are on the figure: of tick labels those within their axis."""
    hidden = set()
    for ax in figure.axes:
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [text for text in figure.findobj(Text) if text.get_visible() and text not in hidden]


def renderer_of(figure: Figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def assert_not_blank(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.width == 1800
        assert np.asarray(picture.convert("L")).std() > 5


def test_every_figure_has_its_needs_listed() -> None:
    saved = {name for name, draw in vars(figures).items() if hasattr(draw, "__wrapped__")}
    assert saved == set(NEEDS) == set(TEXTS)


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_a_figure_is_saved_and_says_where_it_comes_from(draw: Callable[[Path], Figure], run: Path) -> None:
    figure = draw(run)
    assert_not_blank(run / "figures" / f"{draw.__name__}.png")
    assert "Run made-up" in words(figure)
    assert "n = " in words(figure)


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_text_stays_inside_and_apart(draw: Callable[[Path], Figure], run: Path) -> None:
    figure = draw(run)
    renderer, (width, height) = renderer_of(figure), figure.get_size_inches() * figure.dpi
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn(figure) if text.get_text().strip()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, f"{text!r} is cut off"
    for index, (text, box) in enumerate(boxes):
        for other, at in boxes[index + 1 :]:
            across, down = min(box.x1, at.x1) - max(box.x0, at.x0), min(box.y1, at.y1) - max(box.y0, at.y0)
            assert across < 1 or down < 3, f"{text!r} and {other!r} overlap"


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_a_missing_file_is_named_with_the_notebook_to_run(draw: Callable[[Path], Figure], tmp_path: Path) -> None:
    file, notebook = NEEDS[draw.__name__]
    with pytest.raises(FileNotFoundError) as caught:
        draw(tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert notebook in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sft_curve", "grpo_curves", "search_behaviour", "crops_by_flags", "sweeps"])
def test_an_empty_file_is_named(name: str, own_run: Path) -> None:
    file, notebook = NEEDS[name]
    (own_run / file).write_text("")
    with pytest.raises(ValueError, match=f"is empty: run notebook {notebook}"):
        getattr(figures, name)(own_run)


def test_the_smallest_run_is_drawn_too(own_run: Path) -> None:
    write_run(own_run, 2)
    for file in ("sft/sft.csv", "grpo/grpo.csv"):
        lines = (own_run / file).read_text().splitlines()
        (own_run / file).write_text("\n".join(lines[:2]))
    for draw in ALL:
        assert "Run run" in words(draw(own_run))


def test_workflows_crops_and_types_have_words_and_no_others_do() -> None:
    keys = {*WORKFLOWS, *CROPS, *TYPES, *SUPPORT}
    assert WORDS.keys() <= keys
    assert len({word(key) for key in keys}) == len(keys)
    assert word("time_sensitive") == "Time sensitive"


def test_drawing_twice_gives_the_same_file(run: Path) -> None:
    figures.workflows(run)
    first = (run / "figures" / "workflows.png").read_bytes()
    figures.workflows(run)
    assert (run / "figures" / "workflows.png").read_bytes() == first


def test_a_figure_shows_itself_at_900_pixels(run: Path) -> None:
    data, size = figures.workflows(run)._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert size["width"] == 900


# --- the numbers ----------------------------------------------------------------------------------------------------


def test_bars_are_the_metrics(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    figure = figures.workflows(run)
    for ax, (name, scale) in zip(figure.axes, (("accuracy", 100), ("searches", 1), ("needless_search_rate", 100))):
        wanted = [metrics[f"eval/{workflow}/{name}"] for workflow in WORKFLOWS]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx([scale * entry["value"] for entry in wanted])
        whiskers = [tuple(line.get_xdata()) for line in ax.lines]
        assert whiskers == [pytest.approx((scale * e["low"], scale * e["high"])) for e in wanted]
    assert f"{100 * metrics['eval/grpo/accuracy']['value']:.1f}" in words(figure)


@pytest.mark.parametrize(("name", "groups"), [("by_type", TYPES), ("halves", (*HALVES, "harmonic_mean"))])
def test_accuracies_of_groups_are_the_metrics(name: str, groups: tuple[str, ...], run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    for ax, group in zip(getattr(figures, name)(run).axes, groups, strict=True):
        wanted = [100 * metrics[f"eval/{workflow}/accuracy/{group}"]["value"] for workflow in WORKFLOWS]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(wanted)
        assert ax.get_title("left") == word(group)


def test_habits_are_the_metrics(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    for ax, habit in zip(figures.habits(run).axes, HABITS, strict=True):
        wanted = [100 * metrics[f"eval/{workflow}/habit/{habit}"]["value"] for workflow in ("sft", "grpo", "teacher")]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(wanted)


def test_crops_are_the_metrics_and_the_accent_is_the_agents(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    for ax, score in zip(figures.crops(run).axes, TEXTS["crops"]["panels"]):
        wanted = [100 * metrics[f"ablation/{crop}/{score}"]["value"] for crop in CROPS]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(wanted)
        assert [to_hex(bar.get_facecolor()) == ACCENT for bar in ax.patches] == [True, False, False, False, False]


def test_the_funnel_shows_each_count(run: Path) -> None:
    card = json.loads((run / "data" / "card.json").read_text())
    shown = words(figures.funnel(run))
    for number in (*card["funnel"].values(), *card["labels"].values(), *card["taxonomy"].values()):
        assert f"{number:,}" in shown.splitlines()


def test_grpo_names_the_means_of_the_first_and_last_tenth(run: Path) -> None:
    lines = (run / "grpo" / "grpo.csv").read_text().splitlines()
    rewards = [float(line.split(",")[lines[0].split(",").index("reward")]) for line in lines[1:]]
    assert f"{np.mean(rewards[:6]):.2f} → {np.mean(rewards[-6:]):.2f}" in words(figures.grpo_curves(run))


def test_the_choice_shows_each_kept_adapter_and_which_is_the_agent(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    points = [line for line in figures.choice(run).axes[0].lines if line.get_marker() == "o"]
    steps = [int(line.get_xdata()[0]) for line in points]
    assert steps == [0, 16, 32, 48, 64] and metrics["grpo/chosen_step"]["value"] == 48
    wanted = [100 * metrics[f"grpo/val/{step}/accuracy"]["value"] for step in steps]
    assert [line.get_ydata()[0] for line in points] == pytest.approx(wanted)
    assert [step for step, line in zip(steps, points) if line.get_color() == ACCENT] == [48]


def test_search_bars_sum_to_all_questions(run: Path) -> None:
    for ax in figures.search_behaviour(run).axes:
        assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(200)


def test_running_mean_and_its_interval() -> None:
    values = np.arange(40.0)
    mean, error = running_mean(values)
    assert mean[20] == pytest.approx(values[18:23].mean())
    assert error[20] == pytest.approx(1.96 * values[18:23].std(ddof=1) / np.sqrt(5))
    assert running_mean(np.array([3.0]))[1].tolist() == [0.0]


def test_sample_says_a_range_where_counts_differ() -> None:
    assert sample([Interval(0.1, n=1200), None]) == "n = 1,200"
    assert sample([Interval(0.1, n=8), Interval(0.1, n=9)]) == "n = 8 to 9"


# --- what is missing ------------------------------------------------------------------------------------------------


def test_a_missing_column_is_said_in_its_panel(own_run: Path) -> None:
    write_csv(own_run / "grpo" / "grpo.csv", [{"step": 1, "reward": 0.5, "entropy": ""}, {"step": 2, "reward": 0.6}])
    shown = words(figures.grpo_curves(own_run))
    assert "grpo/grpo.csv has no column\nrewards/crops/mean" in shown
    assert "grpo/grpo.csv has no column\nentropy" in shown
    assert "0.50 → 0.60" in shown


def test_a_metric_that_was_not_measured_is_said(own_run: Path) -> None:
    metrics = json.loads((own_run / "metrics.json").read_text())
    del metrics["eval/teacher/accuracy"]
    metrics["eval/grpo/accuracy"] |= {"low": None, "high": None}
    (own_run / "metrics.json").write_text(json.dumps(metrics))
    assert "not measured" in words(figures.workflows(own_run))


def test_metrics_of_an_earlier_notebook_alone_are_not_enough(own_run: Path) -> None:
    (own_run / "metrics.json").write_text('{"grpo/reward_first": {"value": 1, "low": null, "high": null, "n": null}}')
    with pytest.raises(ValueError, match="has no ablation/base/accuracy: run notebook 05_crop_ablation"):
        figures.crops(own_run)
    with pytest.raises(ValueError, match="has no grpo/chosen_step: run notebook 03_grpo"):
        figures.choice(own_run)
    assert read_metrics(own_run)["grpo/reward_first"] == Interval(1)


# --- pictures of trajectories ---------------------------------------------------------------------------------------


def test_a_trajectory_is_drawn_with_its_crop_and_verdict(tmp_path: Path) -> None:
    question = next(q for q in make_questions("test", 20, seed=0) if q.type == "one_hop")
    played = trajectory(question, question.answer).as_dict()
    figure = draw_trajectory(question.draw(), played, question)
    save(figure, tmp_path / "one.png")
    assert_not_blank(tmp_path / "one.png")
    shown = words(figure)
    assert "✓" in shown and "image search" in shown and question.expression in shown
    x1, y1, x2, y2 = question.box
    shapes = {round(patch.get_width() / patch.get_height(), 2) for patch in figure.axes[0].patches}
    assert round((x2 - x1) / (y2 - y1), 2) in shapes


@pytest.mark.parametrize("text", ["", "What is this?"])
def test_any_picture_and_an_empty_trajectory_are_drawn(text: str) -> None:
    asked = FileQuestion(id="", type="", text=text, answer="", aliases=(), picture="")
    shown = words(draw_trajectory(Image.new("RGB", (90, 40)), {"task_id": "", "turns": []}, asked))
    assert "no turns" in shown and "no answer" in shown and "✗" not in shown


def test_hostile_text_is_drawn_as_it_is() -> None:
    question = make_questions("test", 1, seed=0)[0]
    figure = draw_trajectory(question.draw(), hostile_trajectory(question).as_dict(), question)
    shown = words(figure)
    assert "<script>" in shown and "$x_1$" in shown and "✗" in shown
    renderer = renderer_of(figure)
    assert all(text.get_window_extent(renderer).x1 <= 900 for text in figure.axes[0].texts)


def test_gallery_and_side_by_side(tmp_path: Path) -> None:
    rows = eval_rows(3)
    gallery(rows[:3], tmp_path / "pictures" / "gallery.png")
    assert_not_blank(tmp_path / "pictures" / "gallery.png")
    by = {(row["workflow"], row["question"]["id"]): row for row in rows}
    sft = rows[3]
    figure = side_by_side(sft, by["grpo", sft["question"]["id"]])
    assert "Agent after SFT" in words(figure) and "Agent after GRPO" in words(figure)
    with pytest.raises(ValueError, match="give two rows on one question"):
        side_by_side(rows[0], rows[-1])
    with pytest.raises(ValueError, match="at least one row"):
        gallery([], tmp_path / "none.png")
    assert picture_of(sft).size == (384, 384)


def test_scenes_show_each_question_with_its_answer(tmp_path: Path) -> None:
    questions = make_questions("test", 5, seed=0)
    figure = scenes(questions)
    assert len(figure.axes[0].images) == 5
    shown = " ".join(words(figure).split())
    assert all(question.text in shown and question.answer in shown for question in questions)
    texts = [text.get_window_extent(renderer_of(figure)) for text in figure.axes[0].texts]
    assert not any(a.overlaps(b.padded(-1)) for i, a in enumerate(texts) for b in texts[:i])


def test_wrapping_keeps_the_width_and_the_words() -> None:
    text = "a few short words, then " + "x" * 200 + "\nand a second paragraph"
    assert "".join("".join(wrap(text, 2.0, most=99)).split()) == "".join(text.split())
    cut = wrap(text, 2.0, most=2)
    assert len(cut) == 2 and cut[-1].endswith("…")
    assert wrap("", 2.0) == []


def test_what_cannot_be_printed_is_wrapped_as_dots() -> None:
    assert wrap("a\x1b[31m b\ud800\u202ec", 2.0) == ["a·[31m b··c"]  # a terminal's command, half a pair, an override
