"""MMAU-Pro's rules of instruction following: for each one answers that follow it and that do not, counted by hand."""

import pytest

from mimo_jax.evaluation.instruction_rules import RULES, check, count_sentences, count_words

CASES = [
    # rule, arguments, answers that follow it, answers that do not
    ("Include Keywords", {"keywords": "piano, Rain"}, ["Rain and a PIANO."], ["A piano.", ""]),
    ("Include Keywords", {"keywords": ["钢琴", "雨"]}, ["下雨时弹钢琴"], ["弹钢琴"]),
    ("Keyword Frequency", {"keyword": "bird", "N": 2}, ["Bird, bird; birds"], ["bird birds", "bird bird bird"]),
    ("Keyword Frequency", {"keyword": "鸟", "N": 2}, ["鸟叫，鸟飞"], ["鸟叫", "鸟鸟鸟"]),
    ("Keyword Frequency", {"keyword": "jazz", "N": 1}, ["这是jazz音乐"], ["这是jazzy音乐"]),
    ("Forbidden Words", {"forbidden_words": "drum, bass"}, ["A flute."], ["A Drum.", "bassoon"]),
    ("Forbidden Words", {"forbidden_words": "鼓"}, ["笛子"], ["鼓声"]),
    ("Number Paragraphs", {"N": 2}, ["one\n***\ntwo", "一***二***"], ["one", "a***b***c", "a\n\nb"]),
    ("Number Words (at least)", {"N": 3}, ["one two three", "one\ntwo - "], ["one two"]),
    ("Number Words (at least)", {"N": 4}, ["我听到鸟", "hear 鸟叫声"], ["我听鸟", "我，听。鸟！"]),
    ("Number Words (at most)", {"N": 3}, ["one two three", ""], ["one two three four"]),
    ("Number Words (range)", {"N1": 2, "N2": 3.0}, ["one two", "one two three"], ["one", "a b c d"]),
    ("Number Sentences (at least)", {"N": 2}, ["It rains. Dr. No sings!", "下雨了。鸟叫！"], ["Dr. No sings.", ""]),
    ("Number Sentences (at most)", {"N": 1}, ["About 3.5 s, e.g. a bell.", "好"], ["One. Two.", "好。很好。"]),
    (
        "Number Sentences (range)",
        {"N1": "2", "N2": 3},
        ["A b. C d?", "A b. C d? E f"],
        ["A b.", "A. B c. D e. F g. H i."],
    ),
    ("Postscript", {"postscript_marker": "P.P.S"}, ["Bye.\nP.P.S. It rains."], ["Bye. P.S. It rains."]),
    ("Postscript", {"postscript_marker": "附言："}, ["再见。附言: 下雨了"], ["再见。"]),
    ("Number Placeholder", {"N": 2}, ["[name] at [place]", "[a][b][c]"], ["[name] at []", "name"]),
    ("Number Bullets", {"N": 2}, ["* one\n* two", "List:\n  * 一\n  * 二"], ["* one", "*one\n*two", "- a\n- b"]),
    ("Title", {}, ["<<Rain>>\nIt rains.", "《雨》下雨了"], ["<Rain>", "<<>>"]),
    ("Minimum Number Highlighted Section", {"N": 2}, ["*a* and *b c*", "**雨** *鸟*"], ["*a* and b", "**"]),
    (
        "Multiple Sections",
        {"N": 2, "section_splitter": "SECTION"},
        ["SECTION 1 a SECTION 2 b"],
        ["Intro SECTION 1 a SECTION 2 b", "section 1 a section 2 b"],
    ),
    (
        "Repeat Prompt",
        {"prompt_transcription": "What do you hear?"},
        [" what do you hear? Rain."],
        ["Rain. What do you hear?"],
    ),
    ("Two Responses", {}, ["rain ****** snow"], ["rain", "Rain ****** rain", "a ****** b ****** c"]),
    ("All Uppercase", {}, ["RAIN 3!", "ÉTÉ"], ["Rain", "雨"]),
    ("All Lowercase", {}, ["rain 3!", "été"], ["Rain", "雨"]),
    ("All-capital Words (at least)", {"N": 2}, ["I hear MP3 sound"], ["I hear sound"]),
    ("All-capital Words (at most)", {"N": 1}, ["RAIN falls", "雨"], ["RAIN FALLS"]),
    ("All-capital Words (range)", {"N1": 1, "N2": 2}, ["RAIN", "RAIN FALLS"], ["rain", "RAIN FALLS NOW"]),
    ("Start Checker", {"start_phrase": "I hear:"}, ["**I hear**\nrain", " I\nhear!"], ["Well, I hear", "Hear"]),
    ("Start Checker", {"start_phrase": "我听到"}, ["我听到，雨"], ["听到雨"]),
    ("End Checker", {"end_phrase": "That is all."}, ["Rain. That is ALL! "], ["That is all. Bye"]),
    ("End Checker", {"end_phrase": "谢谢。"}, ["下雨了，谢谢！"], ["谢谢你"]),
    ("Quotation", {}, ['"It rains."', " “下雨了。” ", "「雨」"], ['"It rains.', "'It rains.'", ""]),
    ("No Commas", {}, ["It rains; birds sing."], ["Rain, birds.", "雨，鸟", "雨、鸟"]),
]


@pytest.mark.parametrize(("rule", "kwargs", "following", "breaking"), CASES)
def test_answers_that_follow_and_that_do_not(rule, kwargs, following, breaking):
    assert [check(rule, kwargs, answer) for answer in following] == [True] * len(following)
    assert [check(rule, kwargs, answer) for answer in breaking] == [False] * len(breaking)


def test_every_rule_has_cases():
    assert len(RULES) == 27 and {rule for rule, *_ in CASES} == set(RULES)


def test_empty_columns_of_a_table_are_no_arguments():
    assert check("Number Bullets", {"N": 1.0, "N1": None, "keywords": None}, "* one")
    assert check("Title", None, "<<a>>")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("J. S. Bach wrote it. Mrs. Smith plays.", 2),
        ("He said “Stop!” Then he left... and came back.", 3),
        ("1. First one.\n2. Second one.", 2),
        ("In 1999. Then more", 2),
        ("It was 5 p.m. when it rained. At 5 p.m. It rained.", 3),
        ("So do I. It rains", 2),
        ("真的？！好。“走吧。”他说", 4),
        ("no end\nand none here", 1),
        ("...", 0),
    ],
)
def test_sentences(text, count):
    assert count_sentences(text) == count


def test_words():
    assert count_words("well - known") == 3  # what white space separates
    assert count_words("我 hear 3 birds。") == 4
    assert count_words("ＡＢ 한국") == 3


@pytest.mark.parametrize(
    ("rule", "kwargs", "message"),
    [
        ("Number Commas", {}, "unknown rule 'Number Commas'.*Include Keywords.*No Commas"),
        ("Number Bullets", {}, "Number Bullets.*'N'"),
        ("Number Bullets", {"N": 1.5}, "whole number"),
        ("Number Bullets", {"N": float("nan")}, "needs the number 'N'"),
        ("Number Bullets", {"N": float("inf")}, "whole number"),
        ("Number Words (range)", {"N1": 1}, "'N2'"),
        ("Keyword Frequency", {"keyword": " ", "N": 1}, "'keyword'"),
        ("Include Keywords", {"keywords": ""}, "'keywords'"),
        ("Start Checker", {"start_phrase": "123"}, "no letter"),
        ("Repeat Prompt", {"keyword": "a"}, "prompt_transcription"),
    ],
)
def test_what_is_missing_is_named(rule, kwargs, message):
    with pytest.raises(ValueError, match=message):
        check(rule, kwargs, "some answer")
