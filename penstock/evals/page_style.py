"""How pages of evaluations look, by the reader's own light or dark scheme."""

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fbfbfa; --ink: #1d232a; --faint: #5d6771; --edge: #d5dade; --card: #ffffff;
  --ours: #0b66c3; --theirs: #a35b00; --passed: #1677c8; --failed: #e2a336; --bad: #a8201a; --good: #0a6b52; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --ink: #e6e9ec; --faint: #9aa5af; --edge: #39424b;
  --card: #1c2228; --ours: #6ab0f5; --theirs: #e9a651; --passed: #6ab0f5; --failed: #b8832b; --bad: #ff8d83;
  --good: #5fd3ae; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 8px; }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 4px 0 10px; max-width: 78ch; } .faint { color: var(--faint); }
.verdict { font-weight: 600; } .bad { color: var(--bad); } .good { color: var(--good); }
.facts { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0 6px; padding: 0; list-style: none; }
.facts li { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 8px 14px;
  min-width: 118px; }
.facts b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; }
.facts span { color: var(--faint); font-size: 13px; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  padding: 10px 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: 13px; }
th, td { padding: 5px 12px 5px 0; vertical-align: top; border-bottom: 1px solid var(--edge); }
tr:last-child td { border-bottom: 0; } td.n, th.n { text-align: right; } td { overflow-wrap: anywhere; }
code { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
svg { display: block; max-width: none; } svg text { fill: var(--ink); font-size: 13px; }
svg .small { fill: var(--faint); font-size: 12px; } svg .strong { font-weight: 600; }
svg .name { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; }
svg .grid { stroke: var(--edge); } svg .limit { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 4 3; }
svg .line { fill: none; stroke-width: 2; } svg .dot { stroke: var(--card); stroke-width: 1.5; }
svg .ours { stroke: var(--ours); } svg .theirs { stroke: var(--theirs); stroke-dasharray: 6 3; }
svg .dot.ours { fill: var(--ours); stroke: var(--card); }
svg .dot.theirs { fill: var(--theirs); stroke: var(--card); stroke-dasharray: none; }
svg .box { fill: var(--ground); stroke: var(--edge); } svg .link { fill: none; stroke: var(--faint); opacity: .45; }
svg .passed { fill: var(--passed); } svg .failed { fill: var(--failed); }
.key { font-size: 13px; color: var(--faint); }
.key i { display: inline-block; width: 18px; height: 4px; margin: 0 6px 3px 14px; }
""".strip()
