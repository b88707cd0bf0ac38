"""Prompts: templates, files, what is drawn of them and what is refused."""

import pytest
import torch
from text_toys import TEXT, drawn_at, encode

from pecker_fast.distill.prompts import PromptPair, TextConditions, prompt_pairs, read_prompts
from pecker_fast.distill.text_config import ConceptSection, TextSection
from pecker_fast.errors import PeckerError

CPU = torch.device("cpu")


def test_templates_make_pairs():
    section = ConceptSection(
        prompts=("a photo of {concept}", "{concept} {subject}"),
        concept=("red", "blue"),
        override="",
        fill={"subject": ("boy", "girl"), "unused": ("x",)},
    )
    pairs = prompt_pairs(section)
    assert len(pairs) == 2 + 2 * 2
    assert PromptPair("a photo of red", "a photo of") in pairs
    assert PromptPair("blue girl", "girl") in pairs


def test_plain_prompts_that_name_the_concept():
    """As SFD's lists: the name is exchanged in what the teacher is told, and only there."""
    section = ConceptSection(
        prompts=("Brad Pitt in a tuxedo.",), concept="brad pitt", override="a middle aged man"
    )
    assert prompt_pairs(section) == [
        PromptPair("Brad Pitt in a tuxedo.", "a middle aged man in a tuxedo.")
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("my photo", "'my photo' has no {concept}"),
        ("{concept} at {place}", r"placeholder {place} without values; give them in fill.place"),
        ("{concept", "is wrong: "),
        ("{concept:d}", "more than a name"),
        ("{concept:{x}}", "more than a name"),
        ("{concept} {}", "more than a name"),
    ],
)
def test_wrong_templates_are_refused(template, message):
    with pytest.raises(PeckerError, match=message):
        prompt_pairs(ConceptSection(prompts=(template,), concept="a", override="b"))


def test_more_prompts_than_can_be_kept():
    fill = {name: tuple("0123456789") for name in "abcdefghij"}
    template = "{concept} " + " ".join(f"{{{name}}}" for name in fill)
    with pytest.raises(PeckerError, match="10,000,000,000 prompts"):
        prompt_pairs(ConceptSection(prompts=(template,), concept="a", override="b", fill=fill))


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\n\n  a dög \n", encoding="utf-8")
    assert read_prompts(str(file), "text.remain") == ["a cat", "a dög"]
    file.write_bytes("a dög".encode("latin-1"))
    with pytest.raises(PeckerError, match=r"prompts.txt: is not UTF-8 text"):
        read_prompts(str(file), "text.remain")
    file.write_text("\n \n")
    with pytest.raises(PeckerError, match=r"text.remain: .*prompts.txt has no prompt"):
        read_prompts(str(file), "text.remain")
    with pytest.raises(PeckerError, match=r"nowhere.txt: no such file"):
        read_prompts(str(tmp_path / "nowhere.txt"), "text.remain")


def test_what_is_drawn():
    section = TextSection(
        remain=TEXT["remain"],
        concepts=[TEXT["concepts"][0] | {"weight": 2.0},
                  {"prompts": ["one {concept}"], "concept": "x", "override": "y", "weight": 0.5}],
        dropout=0.25,
    )  # fmt: skip
    conditions = TextConditions(section, encode)
    drawn = conditions.draw(600, drawn_at(0))
    assert drawn.student.shape == (1200, 6, 8)
    remain = {tuple(row.flatten().tolist()) for row in drawn.student[:600]}
    assert remain == {tuple(row.flatten().tolist()) for row in encode(TEXT["remain"])}
    teacher = drawn.teacher[:, 0]
    assert torch.equal(drawn.student[:600], teacher[:600])
    # Every sample of the forget half is a pair: what is told, what the teacher is told, its weight.
    known = {}
    for pairs, weight in zip(conditions.concepts, (2.0, 0.5), strict=True):
        for pair in pairs:
            key = encode([pair.forget, pair.override]).flatten().tolist()
            known[tuple(key)] = weight
    seen = torch.stack([drawn.student[600:], teacher[600:]], dim=1)
    found = [known[tuple(pair.flatten().tolist())] for pair in seen]
    assert found == drawn.weight[600:].tolist()
    assert (drawn.weight[:600] == 1).all()
    # Concepts are drawn alike, 300 each, standard deviation 12; and so are the pairs of one.
    assert abs(found.count(2.0) - 300) < 60
    assert torch.equal(drawn.training[:, 0], drawn.of_samples)
    assert torch.equal(drawn.score[:, 0], drawn.student)
    empty = (drawn.of_samples == 0).flatten(1).all(1)
    assert torch.equal(drawn.of_samples[~empty], drawn.student[~empty])
    assert abs(int(empty.sum()) - 300) < 75  # standard deviation 15
    again = conditions.draw(600, drawn_at(0))
    assert torch.equal(again.training, drawn.training)
    assert not torch.equal(conditions.draw(600, drawn_at(1)).student, drawn.student)


def test_too_many_prompts_are_sampled():
    section = TextSection(
        remain=[f"thing {i}" for i in range(50)], concepts=TEXT["concepts"], max_prompts=7
    )
    one, two = (TextConditions(section, encode, seed) for seed in (0, 1))
    assert len(one.remain) == 7
    assert one.remain != two.remain
    assert one.remain == TextConditions(section, encode, 0).remain


def test_an_override_without_a_difference_is_refused():
    section = TEXT | {"concepts": [TEXT["concepts"][0] | {"override": "a  cat"}]}
    with pytest.raises(PeckerError, match=r"forgetting 'a photo of a cat' in favour of .* nothing"):
        TextConditions(TextSection(**section), encode)
