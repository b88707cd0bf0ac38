"""Prompt files: what a row means, in the forms that are published, and which line is wrong."""

import csv

import pytest

from pecker_fast.datasets.prompt_files import ALL, PromptRow, read_prompt_file
from pecker_fast.errors import PeckerError


@pytest.fixture
def written(tmp_path):
    def write(content, name="p.csv"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_rows_with_all_there_is(written):
    text = '\ufeffseed, Prompt ,group,LABEL,note\n3,"a cat, asleep",forget,cat,x\n4,a dog,keep,,y\n'
    found = read_prompt_file(written(text))
    assert list(found.rows) == [
        PromptRow(prompt="a cat, asleep", group="forget", label="cat", seed=3),
        PromptRow(prompt="a dog", group="keep", seed=4),
    ]
    assert found.groups == ("forget", "keep")


def test_i2ps_own_columns(tmp_path):
    """As the data set has them, and as the copies of ESD do; prompts over several lines."""
    for seed, scale in (
        ("sd_seed", "sd_guidance_scale"),
        ("evaluation_seed", "evaluation_guidance"),
    ):
        path = tmp_path / f"{seed}.csv"
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "prompt", "categories", "hard", seed, scale, "sd_model"])
            for row in range(4703):
                writer.writerow([row, f'a "prompt",\nnumber {row}', "hate", 1, row + 7, 7.5, "x"])
        found = read_prompt_file(path)
        assert len(found.rows) == 4703 and found.groups == (ALL,)
        assert found.rows[9] == PromptRow(prompt='a "prompt",\nnumber 9', seed=16, guidance=7.5)


def test_captions_one_a_line(written):
    found = read_prompt_file(written("a man, on a horse\r\n\n  two dogs \n", "captions.txt"))
    assert [row.prompt for row in found.rows] == ["a man, on a horse", "two dogs"]


def test_the_digest_is_of_what_the_rows_say(written):
    first = read_prompt_file(written("prompt,seed\na,1\n"))
    same = read_prompt_file(written("seed,prompt,other\n1,a,z\n", "q.csv"))
    other = read_prompt_file(written("prompt,seed\na,2\n", "r.csv"))
    assert first.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("text,group\na,keep\n", "'prompt'"),
        ("prompt,group\na,keep\nb\n", "line 3.*cells"),
        ("prompt,seed\na,1\nb,\n", "line 3.*seed"),
        (f"prompt,seed\na,{2**64}\n", "line 2.*seed"),
        ("prompt,seed\na,१\n", "line 2.*seed"),
        ("prompt,guidance\na,1e9\n", "line 2.*guidance"),
        ("prompt,save_as\na,../b.png\n", "line 2.*save_as"),
        ("prompt,save_as\na,b.gif\n", "line 2.*save_as"),
        ("prompt,save_as\na,b.png\nb,\n", "line 3.*save_as"),
        ("prompt,save_as\na,b.png\nb,B.png\n", "save_as 'b.png'"),
    ],
)
def test_the_line_that_is_wrong_is_named(written, text, named):
    with pytest.raises(PeckerError, match=f"p.csv.*{named}"):
        read_prompt_file(written(text))
