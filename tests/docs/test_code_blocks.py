"""Every code block of README.md, CONTRIBUTING.md and docs/: Python is run, gin bound, commands checked.

`blocks` says how a page marks what cannot be run, and why; `commands` how a command is checked.
"""

import ast
import contextlib
import dataclasses
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

import gin
import numpy as np
import pytest
import yaml

from mimo_jax import cli
from mimo_jax.data.manifest import Record, record_of
from mimo_jax.inference.tasks import MimoAudio
from tests.docs import blocks, commands
from tests.docs.blocks import PAGES, ROOT, Block

RUN_FILE = "gin/runs/quickstart/joint.gin"
# Commands that take no longer than a look at their flags.
CHEAP = re.compile(r"python -m mimo_jax\.(evaluate --list|convert inspect --model .*)")
# The tiny model of random weights speaks until it is stopped, and few shapes have to be compiled.
LIMITS = {"max_batch": 2, "max_positions": 128, "chunk": 64}
BLOCKS = [block for page in PAGES for block in blocks.of(page)]


def ids(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def test_every_block_names_a_language_that_is_tested():
    known = {"bash", "python", "gin", "json", "yaml", "text"}
    wrong = [f"{b}: {b.language or 'no language'}" for b in BLOCKS if b.language not in known and not b.not_run]
    assert not wrong, f"name one of {', '.join(sorted(known))}, or say why it is not run: {wrong}"
    assert Counter(b.language for b in BLOCKS)["bash"] > 30


def test_text_holds_no_commands():
    hidden = re.compile(r"^(python|\./launch/|pip |curl )", re.MULTILINE)
    assert not [str(b) for b in of("text") if hidden.search(b.text)]


@pytest.mark.parametrize("block", of("bash"), ids=ids)
def test_commands(block: Block, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for words in commands.split(block.text):
        try:
            commands.check(words)
        except commands.Unknown as error:
            assert block.not_run, f"{block}: {error} is no program of ours: say <!-- not run: why -->"
        line = " ".join(words)
        if CHEAP.fullmatch(line) and not block.not_run:
            assert commands.run(words), block


@pytest.mark.parametrize("block", of("gin"), ids=ids)
def test_gin(block: Block, monkeypatch: pytest.MonkeyPatch, scratch: Path, tmp_path: Path):
    if block.not_run:
        return
    file = tmp_path / "block.gin"
    file.write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(scratch))
    monkeypatch.setattr(gin, "finalize", lambda: None)  # it refuses required values that no command gives here
    gin.clear_config()
    try:
        cli.parse_gin([block.markers.get("gin", RUN_FILE)], [])
        for macro in re.findall(r"^([A-Z][A-Z_]*) *=", block.text, re.MULTILINE):
            cli._check_macro(f"{macro} = 0")
        gin.parse_config_file(str(file))
    finally:
        gin.clear_config()


@pytest.mark.parametrize("block", of("json", "yaml"), ids=ids)
def test_data(block: Block):
    if block.not_run:
        return
    if block.language == "yaml":
        assert list(yaml.safe_load_all(block.text))
        return
    decoder = json.JSONDecoder()
    rest = block.text.strip()
    while rest:  # one value, or several one behind the other
        value, end = decoder.raw_decode(rest)
        if isinstance(value, dict) and "audio" in value:  # a line of a manifest
            record_of({"id": "a", **value})
            assert set(value) <= {field.name for field in dataclasses.fields(Record)}, block
        rest = rest[end:].strip()


_LOAD, _LOADED = MimoAudio.load, {}


def loaded_once(lm: str, tokenizer: str, **options: object) -> MimoAudio:
    """`MimoAudio.load` with small limits; pages that load alike share a model and what is compiled of it."""
    key = (Path(lm).resolve(), Path(tokenizer).resolve(), *map(str, options.items()))
    if key not in _LOADED:
        _LOADED[key] = _LOAD(lm, tokenizer, **{**LIMITS, **options})
    return _LOADED[key]


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.page == p for b in of("python"))], ids=lambda p: p.name)
def test_python(page: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks of a page run one after the other and see each other's names."""
    monkeypatch.chdir(scratch)
    monkeypatch.syspath_prepend(str(scratch))
    monkeypatch.setattr(MimoAudio, "load", loaded_once)
    names: dict[str, object] = {"__name__": "page"}
    for block in (b for b in of("python") if b.page == page):
        code = compile("\n" * block.line + block.text, str(page), "exec")
        if "file" in block.markers:
            continue  # saved by `scratch`; the gin block that names it imports it
        if block.not_run:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)


def test_paths_that_pages_name_are_there():
    """`gin/...`, `launch/...` and the like in the text."""
    rooms = "benchmarks|docs|gin|launch|mimo_jax|notebooks|requirements|tests|tools"
    named = re.compile(rf"`(?:\./)?((?:{rooms})/[\w./-]+?)/?`")
    missing = [
        f"{page.name}: {path}"
        for page in PAGES
        for path in named.findall(blocks.prose(page))
        if not (ROOT / path).exists() and not Path(path).stem.isupper()  # NAME stands for any
    ]
    assert not missing


def test_modules_that_pages_name_are_there():
    """`mimo_jax.data.manifest.Record`: the module, or what the module defines."""
    missing = []
    for page in PAGES:
        for name in re.findall(r"`(?:python -m )?(mimo_jax(?:\.\w+)+)", blocks.prose(page)):
            parts = name.split(".")
            while parts and not (ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").is_file()):
                parts.pop()
            rest = [part for part in name.split(".")[len(parts) :] if not part.isupper()]
            source = ROOT.joinpath(*parts).with_suffix(".py")
            source = source if source.is_file() else ROOT.joinpath(*parts, "__init__.py")
            if rest and not re.search(rf"\b{rest[0]}\b", source.read_text(encoding="utf-8")):
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_messages_of_the_faq_are_those_of_the_program():
    """The first column in backticks; `...` stands for anything."""
    messages = [path.read_text(encoding="utf-8") for path in (ROOT / "launch").glob("*.sh")]
    sources = [*(ROOT / "mimo_jax").rglob("*.py"), Path(gin.config.__file__)]
    for node in (node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.JoinedStr):
            messages.append("".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            messages.append(re.sub(r"\{[^}]*\}", "\0", node.value))
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 20
    for message in quoted:
        pieces = [piece.strip() for piece in message.split("...") if piece.strip()]
        pattern = re.compile(".*?".join(map(re.escape, pieces)), re.DOTALL)
        assert any(pattern.search(known) for known in messages if pieces[0] in known), message


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' Python runs: a tiny model, recordings, a source, files of marked blocks."""
    from benchmarks.crowd import tiny_model
    from mimo_jax.data.audio import write_wav
    from mimo_jax.data.manifest_files import write_manifest

    folder = tmp_path_factory.mktemp("pages")
    tiny_model.write_model(folder / "made")
    for export in ("export", "runs/quickstart/export"):
        (folder / export).mkdir(parents=True)
        for name in ("lm", "language_model"):
            (folder / export / name).symlink_to(folder / "made" / "lm")
        (folder / export / "tokenizer").symlink_to(folder / "made" / "tokenizer")
    rng = np.random.default_rng(0)
    recordings = ("recording.wav", "question.wav", "voice.wav", "lecture.flac", "a.wav", "data/a.wav")
    (folder / "data").mkdir()
    for name in recordings:
        write_wav(folder / name, rng.normal(0, 0.1, 24_000).astype(np.float32))
    write_manifest(folder / "data" / "manifest.jsonl", [Record("a", "a.wav", "hello", split="train")])
    (folder / "my_embeddings.py").write_text("def embed(wave, sample_rate):\n    return wave[:2]\n")
    for block in BLOCKS:
        if "file" in block.markers:
            ast.parse(block.text)
            path = folder / block.markers["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    yield folder
    _LOADED.clear()
    for name in [n for n, m in sys.modules.items() if str(folder) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


def test_a_wrong_flag_in_a_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text(
        "1. An item:\n\n   <!-- not run: needs a pod -->\n   ```bash\n   # all of it\n"
        "   A=1 python -m mimo_jax.train \\\n"
        '       --gin_file=gin/runs/sft_7b.gin --gin.MODEL_DIR="a b" ...  # and so on\n'
        "   kubectl apply -f x; ls\n   ```\n"
    )
    [block] = blocks.of(page)
    assert (block.language, block.line, block.not_run) == ("bash", 4, "needs a pod")
    train, kubectl, _ = commands.split(block.text)
    assert train[1:] == [
        "python", "-m", "mimo_jax.train", "--gin_file=gin/runs/sft_7b.gin", "--gin.MODEL_DIR=a b", "...",
    ]  # fmt: skip
    monkeypatch.chdir(ROOT)
    commands.check(train)
    with pytest.raises(commands.Unknown, match="kubectl"):
        commands.check(kubectl)
    with pytest.raises(ValueError, match="unknown marker 'skipped'"):
        page.write_text("<!-- skipped: why -->\n```bash\n```\n")
        blocks.of(page)


@pytest.mark.parametrize(
    "command, message",
    [
        ("python -m mimo_jax.train --gin_file=gin/runs/sft_7b.gin --gin.MODEL_DIR=x", "PREPARED"),
        ("python -m mimo_jax.train --gin_file=gin/runs/sft_7b.gin --gin.MODEL_DR=x ...", "the macro MODEL_DR"),
        ("python -m mimo_jax.train --gin_file=gin/runs/sft_7b.gin --gin.mesh.Hardware.micro=1 ...", "'micro'"),
        ("python -m mimo_jax.train --gin_file=gin/runs/none.gin ...", "no such file"),
        ("python -m mimo_jax.train --profil=1:2 ...", "unexpected argument|Unknown command line flag"),
        ("python -m mimo_jax.generate --lm=a --tokenizer=b --task=tts --txt=c", "--txt=c"),
        ("python -m mimo_jax.convert inspect", "--weights --model is required"),
        ("python -m mimo_jax.nothing", "no such module"),
        ("python -m mimo_jax.pretrain --out=a --gin.PREPARED=b --stage='gin/runs/sft_7b.gin EVAL_SPLT=c'", "EVAL_SPLT"),
        ("mimo-jax corpus --oot=a", "oot"),
        ("./launch/quickstart.sh --prset=smoke", "prset"),
        ("./launch/nothing.sh", "no such file"),
        ("python benchmarks/data.py --contxt=1", "--contxt=1"),
        ("pip install 'mimo_jax[nothing]'", "no extra nothing"),
        ("cp launch/nothing.env job.env", "no such file"),
        ("curl http://127.0.0.1:8000/v1/nothing", "has no /v1/nothing"),
        ("""curl http://127.0.0.1:8000/v1/audio/speech -d '{"input": 1}'""", "input"),
    ],
)
def test_wrong_commands_are_found(command: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    [words] = commands.split(command)
    with pytest.raises(commands.Wrong, match=message):
        commands.check(words)
