"""Style and script of the report, kept in the page itself: it makes no request."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf7;--card:#fff;--ink:#1d2430;--soft:#5b6472;--rule:#e3e1da;--accent:#0f766e;
--p0:#0f766e;--p1:#c9c5ba;
--c0:#334155;--c1:#440f6b;--c2:#7a1d80;--c3:#a8327d;--c4:#d1426f;--c5:#e8644f;--c6:#ee8a3c;--c7:#d9a321;--c8:#9aa51f}
@media (prefers-color-scheme:dark){:root{--bg:#12161d;--card:#1a202a;--ink:#e8e9ec;--soft:#9aa4b2;--rule:#2c3440;
--accent:#3fc1b0;--p0:#3fc1b0;--p1:#4a5463;
--c0:#cbd5e1;--c1:#a78bfa;--c2:#c084fc;--c3:#e879c9;--c4:#f472a0;--c5:#fb7f6b;--c6:#fba04d;--c7:#f2c744;--c8:#c6d14a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main,header>div{max-width:1080px;margin:0 auto;padding:0 20px}
header{border-bottom:1px solid var(--rule);background:var(--card);padding:34px 0 28px}
h1{font-size:27px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:19px;margin:44px 0 4px;letter-spacing:-.005em}
h3{font-size:14px;margin:0 0 8px;font-weight:600}
p{margin:6px 0 12px;max-width:74ch}.note,.lead{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(136px,1fr));gap:12px;margin-top:22px}
.tile{border:1px solid var(--rule);border-radius:10px;padding:12px 14px;background:var(--bg)}
.tile b{display:block;font-size:25px;line-height:1.2;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile span{font-size:13px;font-weight:600}.tile small{display:block;color:var(--soft);font-size:12px;
line-height:1.4;margin-top:3px}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px;min-width:0}
.chart{position:relative;max-width:760px}svg{display:block;width:100%;height:auto}
svg text{font-family:inherit;fill:var(--soft)}.tick{font-size:11px}.end{font-size:11px}.name{font-size:12px}
.grid{stroke:var(--rule);stroke-width:1}.axis,.cross{stroke:var(--soft);stroke-width:1}.cross{stroke-dasharray:3 3}
.mark{stroke:var(--soft);stroke-dasharray:2 4;opacity:.7}.line{fill:none;stroke-width:2;stroke-linejoin:round}
.tip{position:absolute;top:8px;pointer-events:none;background:var(--card);border:1px solid var(--rule);
border-radius:8px;
padding:7px 10px;font-size:12px;line-height:1.45;box-shadow:0 4px 14px rgba(0,0,0,.14);white-space:nowrap;z-index:2}
.tip i,.legend i{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:6px}
.legend{display:flex;gap:16px;font-size:12px;color:var(--soft);margin-bottom:6px;flex-wrap:wrap}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 12px 7px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:12px;white-space:nowrap}td small{color:var(--soft);white-space:nowrap}
.listen{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:14px}
.listen .card{padding:14px}.listen .note{font-size:13px}
.clip{margin-top:9px}.clip span{font-size:12px;color:var(--soft);display:block}
.clip q{color:var(--ink)}audio{width:100%;height:34px;display:block;margin-top:3px}
.side{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,210px),1fr));gap:4px 14px}
.spec img{width:100%;height:118px;display:block;border-radius:6px;image-rendering:auto}
.spec figure{margin:0 0 10px}.spec figcaption{font-size:12px;color:var(--soft);margin-bottom:3px}
.hbar{display:grid;grid-template-columns:minmax(110px,190px) 1fr 92px;gap:10px;align-items:center;font-size:13px;
padding:3px 0}
.hbar b{display:block;height:12px;background:var(--rule);border-radius:6px;overflow:hidden}
.hbar i{display:block;height:100%;background:var(--accent);border-radius:6px}.hbar em{font-style:normal;
text-align:right;color:var(--soft)}
details{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 16px;margin:12px 0}
summary{cursor:pointer;font-weight:600}pre{overflow-x:auto;font:12px/1.5 ui-monospace,Menlo,Consolas,monospace;
margin:10px 0 4px}
footer{color:var(--soft);font-size:12px;margin:44px 0 28px}
@media (max-width:560px){h1{font-size:22px}.hbar{grid-template-columns:96px 1fr 78px}.tile b{font-size:21px}}
@media print{body{background:#fff;font-size:11px}.card,.tile,figure,tr{break-inside:avoid}audio,.tip{display:none}
h2{break-after:avoid}}
""" + "".join(
    f".s-{c}{{stroke:var(--{c})}}.f-{c}{{fill:var(--{c})}}.b-{c}{{background:var(--{c})}}\n"
    for c in ("p0", "p1", *(f"c{i}" for i in range(9)))
)

SCRIPT = """
for (const box of document.querySelectorAll('[data-chart]')) {
  const data = JSON.parse(box.dataset.chart), svg = box.querySelector('svg'), tip = box.querySelector('.tip');
  const cross = box.querySelector('.cross'), [left, width, low, high] = data.x;
  const hide = () => { tip.hidden = true; cross.setAttribute('visibility', 'hidden'); };
  const show = event => {
    const frame = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / frame.width;
    const at = (event.clientX - frame.left) * scale;
    if (at < left - 4 || at > left + width + 4) return hide();
    const x = low + (at - left) / width * (high - low);
    cross.setAttribute('x1', at); cross.setAttribute('x2', at); cross.setAttribute('visibility', 'visible');
    tip.replaceChildren();
    const head = document.createElement('div');
    head.textContent = data.name + ': ' + Math.round(x).toLocaleString('en');
    tip.append(head);
    for (const line of data.lines) {
      let best = line.points[0];
      for (const point of line.points) if (Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
      const row = document.createElement('div'), mark = document.createElement('i');
      mark.className = 'b-' + line.colour;
      row.append(mark, line.label + '  ' + best[1].toPrecision(3));
      tip.append(row);
    }
    tip.hidden = false;
    const pixels = at / scale;
    tip.style.left = pixels > frame.width / 2 ? (pixels - tip.offsetWidth - 12) + 'px' : (pixels + 12) + 'px';
  };
  svg.addEventListener('pointermove', show);
  svg.addEventListener('pointerleave', hide);
}
for (const player of document.querySelectorAll('audio'))
  player.addEventListener('play', () => {
    for (const other of document.querySelectorAll('audio')) if (other !== player) other.pause();
  });
"""
