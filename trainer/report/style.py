"""The page's style: one column, figures side by side where there is room, light and dark.

Colours of lines keep their order; 1 to 6 are told apart by people with colour-blindness too, and every line
also has its name beside it.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1c2126; --soft: #59636e; --edge: #d5dae0; --grid: #e8ebee; --box: #f4f6f8;
  --lost: #d9480f;
  --s1: #0b62b8; --s2: #b3480b; --s3: #0f7a5c; --s4: #8a3b8f; --s5: #7a6200; --s6: #b02a4c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181c; --text: #e6e9ec; --soft: #a0aab4; --edge: #3a424a; --grid: #262d34; --box: #1c2228;
    --lost: #ff7a45;
    --s1: #6cb2ff; --s2: #ff9d5c; --s3: #4fd1a5; --s4: #dc9be0; --s5: #e0c04a; --s6: #ff8ba3;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1, h2, p, dd, figcaption { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
p { margin: 0 0 .75rem; max-width: 46rem; }
section { margin-top: 2rem; padding-top: 1.25rem; border-top: 1px solid var(--edge); }
.verdict {
  max-width: none; margin: 0 0 1rem; padding: .75rem 1rem; font-size: 1.1rem;
  background: var(--box); border-left: 4px solid var(--s1);
}
.missing { margin-bottom: .8rem; padding: .6rem .9rem; background: var(--box); border-left: 4px solid var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .6rem 1.5rem; margin: 0; }
dt { font-size: .8rem; color: var(--soft); }
dd { margin: 0; }
code, pre { font: .85em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { margin: 0 0 .9rem; padding: .6rem .8rem; background: var(--box); overflow-x: auto; }
pre code { white-space: pre-wrap; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .35rem 1rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--edge); }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 500; }
tbody th { min-width: 7rem; max-width: min(18rem, 40vw); overflow-wrap: break-word; }
thead th { color: var(--soft); font-size: .8rem; vertical-align: bottom; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead .num { white-space: normal; min-width: 4.5rem; }
td { white-space: nowrap; }
td code { white-space: normal; }
code.spoken { display: block; min-width: 12rem; max-width: 24rem; white-space: pre-wrap; }
details { margin: 0 0 .6rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.tokens {
  max-width: none; margin: .4rem 0 .3rem; padding: .5rem .7rem; background: var(--box); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .9rem;
}
.lost1 { background: color-mix(in srgb, var(--lost) 14%, transparent); }
.lost2 { background: color-mix(in srgb, var(--lost) 28%, transparent); }
.lost3 { background: color-mix(in srgb, var(--lost) 45%, transparent); }
.lost4 { background: color-mix(in srgb, var(--lost) 58%, transparent); text-decoration: underline; }
.outcome { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem 2rem; }
.outcome.four { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.outcome + p { margin-top: .8rem; }
.outcome h2 { padding-bottom: .2rem; border-bottom: 3px solid var(--line); }
.outcome ul { margin: 0; padding-left: 1.1rem; }
.outcome li { margin-bottom: .35rem; overflow-wrap: anywhere; }
.outcome .kept { --line: var(--s1); }
.outcome .lost { --line: var(--s2); }
.outcome .gained { --line: var(--s3); }
.outcome .not-known { --line: var(--soft); }
.figures {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 2rem;
  margin-bottom: 1.25rem;
}
figure { margin: 0; min-width: 0; max-width: 32rem; }
figure.wide { grid-column: 1 / -1; max-width: 34rem; }
figcaption { font-size: .9rem; margin-bottom: .35rem; }
figcaption b { font-weight: 600; }
.note, .legend { display: block; color: var(--soft); font-size: .8rem; }
.key { display: inline-block; margin-right: 1rem; color: var(--text); }
.key::before {
  content: ""; display: inline-block; width: 1.3rem; border-top: 3px solid var(--line); margin-right: .4rem;
  vertical-align: middle;
}
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 11px; fill: var(--text); font-variant-numeric: tabular-nums; }
svg .unit { fill: var(--soft); }
svg .reference-label { fill: var(--soft); }
svg .name { font-size: 12px; font-weight: 600; }
svg line.grid { stroke: var(--grid); }
svg line.axis { stroke: var(--soft); }
svg line.zero { stroke: var(--text); }
svg line.reference { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg path { fill: none; stroke: var(--line); stroke-width: 1.75; stroke-linejoin: round; }
svg circle.dot { fill: var(--line); }
svg circle.hover { fill: transparent; }
svg text[class^="s"] { fill: var(--line); }
svg .plate { fill: var(--page); }
svg .bar { stroke: var(--line); stroke-width: 2; }
svg .mark { fill: var(--line); }
svg .best path { stroke-width: 3; }
svg .failed path { stroke-dasharray: 4 4; }
svg .halo { paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
.s1, .role-target { --line: var(--s1); }
.s2, .role-replay { --line: var(--s2); }
.s3, .role-probe { --line: var(--s3); }
.s4 { --line: var(--s4); }
.s5 { --line: var(--s5); }
.s6 { --line: var(--s6); }
@media print { section { break-inside: avoid; } }
"""
