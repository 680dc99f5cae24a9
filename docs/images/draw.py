"""Draws the pictures of docs/: `python docs/images/draw.py` writes the SVG files beside this one.

Text is text, colours follow the reader's light or dark setting, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FRAMES, CODEBOOKS, STEPS = 4, 8, 11
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.small { font-size: 11px; } .muted { fill: #59636e; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.strong { font-weight: 600; }
rect { stroke: #8c959f; stroke-width: 1; }
.none { fill: none; } .box { fill: #f3f4f6; }
.text { fill: #cfe3fc; } .audio { fill: #c9ecd6; } .mark { fill: #fbe3bd; }
.f0 { fill: #c9ecd6; } .f1 { fill: #9fdbb6; } .f2 { fill: #cfe3fc; } .f3 { fill: #a3c9f7; }
.line { stroke: #59636e; stroke-width: 1.3; fill: none; } .dashed { stroke-dasharray: 4 3; } .head { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .muted { fill: #9da7b3; } rect { stroke: #7d8590; }
  .box { fill: #2a2f37; }
  .text { fill: #1f3f66; } .audio { fill: #1b4d34; } .mark { fill: #5b4520; }
  .f0 { fill: #1b4d34; } .f1 { fill: #2b6e4b; } .f2 { fill: #1f3f66; } .f3 { fill: #2f5d94; }
  .line { stroke: #9da7b3; } .head { fill: #9da7b3; }
}
"""


class Picture:
    """Shapes in the order in which they are drawn; sizes in pixels."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 3) -> None:
        self.shapes.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>')

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self.shapes.append(f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, lines: list[str], kind: str = "box") -> None:
        """A rectangle with lines of text in its middle, the first one strong, the others small."""
        self.rect(x, y, width, height, kind)
        top = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 16 * number, line, "middle " + ("small" if number else "strong"))

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        self.shapes.append(f'<path class="line{" dashed" if dashed else ""}" d="{path}" marker-end="url(#head)"/>')

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">\n<title>{escape(self.title)}</title>\n'
            f"<style>{_STYLE}</style>\n"
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>\n' + "\n".join(self.shapes) + "\n</svg>\n"
        )


def patch() -> Picture:
    """A patch, and the steps in which the patch decoder produces its codes."""
    out = Picture(760, 320, "A patch of 4 frames and 8 codebooks, and the 11 steps of the delay pattern")
    cell, top = 28, 70

    def codebooks(left: float) -> None:
        for book in range(CODEBOOKS):
            codes = "1024" if book < 2 else "128"
            out.text(left - 8, top + cell * book + 19, f"codebook {book + 1}", "small end")
            if left < 200:
                out.text(left + FRAMES * cell + 8, top + cell * book + 19, codes, "small muted")

    out.text(88, 24, "A patch: 4 frames = 160 ms", "strong")
    out.text(88 + FRAMES * cell + 8, 60, "codes", "small muted")
    codebooks(88)
    for frame in range(FRAMES):
        out.text(88 + cell * frame + 14, 60, str(frame), "small middle muted")
        for book in range(CODEBOOKS):
            out.rect(88 + cell * frame, top + cell * book, cell, cell, f"f{frame}", 0)
            out.text(88 + cell * frame + 14, top + cell * book + 18, str(frame), "small middle")
    left = 400
    out.text(left, 24, "The patch decoder's 11 steps", "strong")
    codebooks(left)
    for step in range(STEPS):
        out.text(left + cell * step + 14, 60, str(step), "small middle muted")
        for book in range(CODEBOOKS):
            frame = step - book
            held = 0 <= frame < FRAMES
            out.rect(left + cell * step, top + cell * book, cell, cell, f"f{frame}" if held else "none", 0)
            if held:
                out.text(left + cell * step + 14, top + cell * book + 18, str(frame), "small middle")
    out.text(88, 316, "frame", "small muted")
    out.text(left, 316, "step: i + r - 1 for frame i of codebook r", "small muted")
    return out


def _row(out: Picture, y: float, title: str, positions: list[str]) -> None:
    """A sequence: `P` a patch, `<...>` a special token, anything else a text token."""
    out.text(16, y - 10, title, "strong")
    for number, what in enumerate(positions):
        x = 16 + 46 * number
        kind = "audio" if what == "P" else "mark" if what.startswith("<") else "text"
        out.rect(x, y, 44, 30, kind)
        out.text(x + 22, y + 20, "patch" if what == "P" else what.strip("<|>"), "small middle")


def sequence() -> Picture:
    """Positions of the three ways in which text and audio meet."""
    out = Picture(860, 372, "Text tokens and audio patches in one sequence")
    _row(out, 40, "Recording, then its words (asr)", ["<sosp|>", *"PPPP", "<eosp|>", "open", "the", "door", "<end>"])
    _row(
        out,
        122,
        "Streamed speech (tts and every spoken answer): 5 text tokens, 5 patches, in turn",
        ["<sostm|>", "open", "the", "door", "of", "the", *"PPPPP", "kitchen", "<eot|>", *"PPP", "<eostm|>"],
    )
    _row(
        out,
        204,
        "Interleaved: spans of a document as text and as audio",
        ["when", "he", "came", "<sosp|>", *"PPP", "<eosp|>", "and", "left", "<sosp|>", *"PP", "<eosp|>", "<end>"],
    )
    out.text(16, 276, "What the model reads at each position", "strong")
    lanes = [("text", ["door", "<|empty|>", "<|empty|>"]), ("audio", ["empty codes", "4 x 8 codes", "4 x 8 codes"])]
    for lane, (name, cells) in enumerate(lanes):
        y = 290 + 34 * lane
        out.text(70, y + 20, name, "end")
        for number, what in enumerate(cells):
            used = what in ("door", "4 x 8 codes")
            out.rect(80 + 112 * number, y, 110, 30, ("text" if lane == 0 else "audio") if used else "none")
            out.text(135 + 112 * number, y + 20, what, "small middle" + ("" if used else " muted"))
    for number, name in enumerate(["a text position", "a patch", "a patch"]):
        out.text(135 + 112 * number, 368, name, "small middle muted")
    return out


def model() -> Picture:
    """Data flow of the language model, with the sizes of the published 7B."""
    out = Picture(800, 470, "Codes and text through patch encoder, LLM, text head and patch decoder")
    out.box(40, 400, 220, 46, ["patch at position t", "4 frames x 8 codebooks"], "audio")
    out.box(40, 318, 220, 46, ["8 embedding tables", "summed over codebooks: 4 x 1024"])
    out.box(40, 236, 220, 46, ["patch encoder", "6 layers, both directions, width 1024"])
    out.box(40, 154, 220, 46, ["4 outputs joined, projected", "4 x 1024 to 4096"])
    out.box(300, 400, 170, 46, ["text id at position t", "of 151,680"], "text")
    out.box(300, 318, 170, 46, ["token table", "4096"])
    out.box(220, 84, 180, 46, ["sum, one vector", "the other one is zero"])
    for y in (400, 318, 236):
        out.arrow((150, y), (150, y - 36))
    out.arrow((385, 400), (385, 364))
    out.arrow((150, 154), (150, 107), (220, 107))
    out.arrow((385, 318), (385, 130))
    out.box(220, 10, 180, 46, ["LLM, causal", "36 layers, width 4096"])
    out.arrow((310, 84), (310, 56))
    out.box(540, 10, 220, 46, ["text head", "text id at t + 1"], "text")
    out.arrow((400, 33), (540, 33))
    out.text(470, 26, "hidden state", "small middle muted")
    out.text(664, 76, "if that id is <|empty|>", "small muted")
    out.box(540, 92, 220, 46, ["projection", "4096 to 1024: input of step 0"])
    out.arrow((650, 56), (650, 92))
    out.arrow((440, 33), (440, 115), (540, 115))
    out.box(540, 174, 220, 46, ["patch decoder, causal", "16 layers, width 1024, 11 steps"])
    out.arrow((650, 138), (650, 174))
    out.box(540, 256, 220, 46, ["8 heads", "one per codebook"])
    out.arrow((650, 220), (650, 256))
    out.box(540, 338, 220, 46, ["patch at position t + 1", "4 frames x 8 codebooks"], "audio")
    out.arrow((650, 302), (650, 338))
    out.arrow((760, 279), (782, 279), (782, 197), (760, 197))
    for number, line in enumerate(
        ("A step's codes are embedded by the", "same tables and summed: the input", "of the next step.")
    ):
        out.text(540, 408 + 16 * number, line, "small muted")
    return out


def tokenizer() -> Picture:
    """Data flow of the audio tokenizer, with the sizes of the published 1.2 B, and what its two stages train."""
    out = Picture(860, 330, "The audio tokenizer: encoder, residual quantiser, decoder, vocoder")
    upper = [
        (["waveform", "24 kHz"], "audio"),
        (["log-mel", "128 bins, 100 Hz"], "box"),
        (["encoder", "conv to 50 Hz", "32 layers, d 1280", "conv to 25 Hz"], "box"),
        (["RVQ", "20 codebooks:", "1024, 1024,", "18 x 128; 25 Hz"], "mark"),
    ]
    lower = [
        (["waveform", "24 kHz"], "audio"),
        (["vocoder", "16 layers, d 256", "inverse STFT"], "box"),
        (["decoder", "conv to 50 Hz", "32 causal layers", "conv to 100 Hz mel"], "box"),
    ]
    for y, boxes in ((20, upper), (200, lower)):
        for number, (lines, kind) in enumerate(boxes):
            out.box(20 + 175 * number, y, 145, 84, lines, kind)
    for number in range(3):
        out.arrow((165 + 175 * number, 62), (195 + 175 * number, 62))
    for number in (2, 1):
        out.arrow((20 + 175 * number, 242), (-10 + 175 * number, 242))
    out.arrow((617, 104), (617, 242), (515, 242))
    out.text(625, 176, "codes; the language", "small muted")
    out.text(625, 191, "model uses the first 8", "small muted")
    out.box(730, 20, 120, 84, ["text LLM", "stage 1 only,", "dropped", "afterwards"])
    out.arrow((690, 62), (730, 62), dashed=True)
    out.text(730, 122, "loss of the words", "small muted")
    out.box(20, 132, 145, 40, ["discriminators", "stage 2 only"])
    out.arrow((92, 200), (92, 172), dashed=True)
    out.text(
        20, 312, "Stage 1 trains all of it. Stage 2 trains decoder and vocoder; encoder and codebooks stay.", "muted"
    )
    return out


PICTURES = {"patch": patch, "sequence": sequence, "model": model, "tokenizer": tokenizer}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
